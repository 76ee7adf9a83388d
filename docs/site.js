// Tables that scroll sideways are reached by the keyboard; the theme makes their frames when a page is shown.
addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((frame, place) => {
    frame.tabIndex = 0;
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", `Table ${place + 1}`);
  });
});
