"""Screening: many models, many candidate datasets, one ranked table."""
