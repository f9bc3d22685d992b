"""The judge: what it is asked (`protocol`), who asks (`client`), who answers (`server`, `judges`)."""
