"""What a finished run is measured by, beyond the loss on its splits: one module per measure."""
