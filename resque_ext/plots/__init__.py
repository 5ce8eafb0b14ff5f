"""Pictures and HTML tables of results: plain values in, a matplotlib figure or text out."""
