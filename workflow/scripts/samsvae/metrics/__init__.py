"""How well predictions agree with data, and with the truth where it is known."""
