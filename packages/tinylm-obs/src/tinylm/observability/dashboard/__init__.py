"""tinylm-obs · the dashboard: `tinylm-obs ui DIR`, a local page that shows runs while they train (extra [ui]).

The data layer needs nothing beyond the standard library: `tail.py` (rows as they arrive), `metrics.py` (rows → curves),
`reduce.py` (many points → few), `layers.py` and `histograms.py` (what heat maps show), `store.py` (all of it, per run).
The page is made of NiceGUI and its ECharts: `server.py`, `page.py`, `charts.py`, and one file per view in `views/`. It
does NOT write into runs. Next: `store.py`.
"""
