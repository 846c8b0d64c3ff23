"""What the page weighs and how soon it can be used, in Debian's Chromium, against a running service.

    python benchmarks/page.py http://127.0.0.1:8000/

Each time a browser that was never here: first as it is, then with the network of a phone (1.6 Mbit/s, 150 ms) and a
processor four times slower. "Interactive": the scripts have run, the service has answered, a video can be chosen.
"""

import argparse
import json
import statistics
from typing import Any

from playwright.sync_api import Browser, sync_playwright

RUNS = 5
PHONE_NETWORK = {"offline": False, "latency": 150, "downloadThroughput": 200_000, "uploadThroughput": 93_750}


def visit(browser: Browser, url: str, *, slow: bool) -> dict[str, float]:
    """Milliseconds since the address was entered, and bytes as they came over the wire."""
    context = browser.new_context()
    page = context.new_page()
    devtools = context.new_cdp_session(page)
    devtools.send("Network.enable")
    if slow:
        devtools.send("Network.emulateNetworkConditions", PHONE_NETWORK)
        devtools.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    received: list[int] = []

    def note(event: dict[str, Any]) -> None:
        received.append(int(event["encodedDataLength"]))

    devtools.on("Network.loadingFinished", note)
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    figures = page.evaluate(
        """() => ({
          first_paint_ms: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0,
          interactive_ms: performance.getEntriesByName("interactive")[0].startTime,
        })"""
    )
    context.close()
    return {**figures, "received_bytes": sum(received), "requests": len(received)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        for name, slow in (("as it is", False), ("phone", True)):
            visits = [visit(browser, arguments.url, slow=slow) for _ in range(RUNS)]
            medians = {figure: round(statistics.median(one[figure] for one in visits)) for figure in visits[0]}
            print(json.dumps({"as": name, **medians}))
        browser.close()


if __name__ == "__main__":
    main()
