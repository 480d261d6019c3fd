"""tinylm-obs · the dashboard's views, one file each; `VIEWS` in `page.py` lists them.

A view is made with the board and a function that asks for a redraw; `build` makes its elements, `update` fills them
anew when rows have arrived or a control was moved.
"""
