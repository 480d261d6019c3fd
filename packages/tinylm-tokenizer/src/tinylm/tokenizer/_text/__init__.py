"""What happens to text before any algorithm sees it: Unicode tables, normalisation, cutting into pieces and words."""
