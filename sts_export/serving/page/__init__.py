"""The page that a server shows to people: its files, and where kept tokens stand in their pictures."""
