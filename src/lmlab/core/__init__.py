"""What every stage uses: errors, files, params, the registry of parts, progress."""
