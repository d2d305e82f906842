"""A Llama whose steps between products check them, nearly free on a GPU."""
