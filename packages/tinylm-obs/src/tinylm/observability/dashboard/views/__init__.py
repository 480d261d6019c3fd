"""tinylm-obs · the dashboard's views, one file each; `view.py` has what they share, `VIEWS` in `page.py` lists them."""
