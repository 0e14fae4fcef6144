"""How options are read: from files and mappings, by the types and the documentation that classes declare."""
