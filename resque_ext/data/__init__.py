"""Everything that brings samples in: checks, files, images, sources, prefetching."""
