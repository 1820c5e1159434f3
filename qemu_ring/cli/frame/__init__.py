"""What all commands share: start, end, streams, output, options."""
