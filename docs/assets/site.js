"use strict";
// The theme puts wide tables into boxes that scroll; the keyboard must reach them.
(() => {
  const reach = () => {
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) {
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", "table");
    }
  };
  new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
  reach();
})();
