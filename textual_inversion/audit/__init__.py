"""What to think of embedding files: judge one, scan a folder, inspect one in depth."""
