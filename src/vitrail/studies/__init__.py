"""Studies: many controlled runs, their records, and what they show.

`definition` says what a study is and what a kind of study is; `data_size`, `scaling`, `ablation`
and `search` are the kinds; `folder` keeps the records so that every run is done once whoever is
killed; `runner` does the runs, and `page` shows the records.
"""
