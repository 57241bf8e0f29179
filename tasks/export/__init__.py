"""What people open in other programs: a table of objects, and their outlines."""
