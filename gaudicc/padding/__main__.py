"""Prints the table of padding rules: python -m gaudicc.padding > docs/tables/padding_rules.md."""

from gaudicc.padding.rules.table import table_lines

if __name__ == "__main__":
    print("\n".join(table_lines()))
