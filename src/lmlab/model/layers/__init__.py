"""What models are built from: each folder is a kind of layer, each module one layer."""
