"""Functions that run by the clock, once deployed. They need `modalnomad up`.

modalnomad deploy examples/clockwork.py
modalnomad app logs clockwork        → what they wrote

modalnomad run examples/clockwork.py::tidy    → one run now: "tidied in 3 places"
"""

import modal

app = modal.App("clockwork")


@app.function(schedule=modal.Period(minutes=5), retries=2)
def tidy():
    places = ["cache", "outbox", "desk"]
    for place in places:
        print("tidying", place)
    return f"tidied in {len(places)} places"


@app.function(schedule=modal.Cron("0 7 * * 1-5", timezone="Europe/Berlin"))
def good_morning():
    print("good morning")
