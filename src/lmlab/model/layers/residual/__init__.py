"""How a layer joins the stream that runs through the blocks: one module per form."""
