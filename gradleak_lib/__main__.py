"""``python -m gradleak_lib`` is the command ``gradleak``."""

from gradleak_lib.book.cli import app

app()
