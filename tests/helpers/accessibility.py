"""Check the accessibility of a page that a browser shows, by the checker axe of Deque."""

from axe_playwright_python.sync_playwright import Axe

THEMES_OWN = ("landmark-unique",)  # moderate: the theme of the site gives two of its menus one name


def faults(page) -> list[str]:
    """Return a line for each rule that a page breaks: contrast, names, alternative texts, order of headings."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {len(rule['nodes'])} times, first {rule['nodes'][0]['html'][:200]}; "
        f"{rule['nodes'][0].get('failureSummary', '')}"
        for rule in found
        if rule["id"] not in THEMES_OWN
    ]
