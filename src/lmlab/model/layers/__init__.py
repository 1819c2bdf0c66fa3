"""What models are built from: each folder one kind of layer, each module one way to do it."""
