"""The kernel's log: which lines mean something, where they are read, and what becomes of them."""
