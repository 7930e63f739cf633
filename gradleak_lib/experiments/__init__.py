"""The experiments behind the chapters: plain functions of plain parameters and a seed."""
