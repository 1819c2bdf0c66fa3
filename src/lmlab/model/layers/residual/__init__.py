"""How a layer's output joins the residual stream: one module per kind of connection."""
