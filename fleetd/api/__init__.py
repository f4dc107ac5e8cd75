"""The front door: every noun as an HTTP resource. The hand, the web page and foreign programs all come through here."""
