"""What turns tables into pages: chapters and their execution, claims, figures, the command line."""
