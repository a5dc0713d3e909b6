"""The commands of ``upkeep``: one module for each family, imported only when one of its commands is given."""
