"""Servers that are asked over HTTP: conversations, a queue, which server is asked, when to ask again."""
