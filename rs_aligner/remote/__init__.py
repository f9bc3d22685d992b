"""Servers that are asked, whatever for: conversations, a queue, which server is asked, when to ask again."""
