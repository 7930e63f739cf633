"""The command ``gradleak``, which is ``python -m gradleak_lib``."""

import sys


def main() -> None:
    """Run the command line; say what to install where the library came without what chapters need."""
    try:
        from gradleak_lib.book.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"gradleak: the command needs {error.name}: pip install 'gradleak[chapters]'")
    app()


if __name__ == "__main__":
    main()
