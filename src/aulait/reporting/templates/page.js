"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const themes = ["light", "dark"];
  let chosen = themes.find((name) => location.hash === "#" + name) || null;

  const present = () => chosen || (dark.matches ? "dark" : "light");
  const other = () => themes[1 - themes.indexOf(present())];

  // "@accent" under a key that ends in "color" becomes the value of the style sheet's --accent
  function painted(node, key, style) {
    if (typeof node === "string") {
      const named = /colou?r$/i.test(key) && node.startsWith("@");
      return named ? style.getPropertyValue("--" + node.slice(1)).trim() || "gray" : node;
    }
    if (Array.isArray(node)) return node.map((item) => painted(item, key, style));
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([name, item]) => [name, painted(item, name, style)]));
  }

  function draw(width) {
    const style = getComputedStyle(root);
    for (const place of document.querySelectorAll(".plot")) {
      const figure = figures[place.dataset.figure];
      if (!figure || !place.offsetParent) continue;
      const { data, layout } = painted(figure, "", style);
      layout.font.family = getComputedStyle(document.body).fontFamily;
      layout.height = place.clientHeight;
      layout.width = width || place.clientWidth;
      Plotly.react(place, data, layout, { displayModeBar: false, scrollZoom: false, doubleClick: "reset" });
    }
  }

  function show() {
    root.dataset.theme = present();
    button.textContent = other();
    button.setAttribute("aria-label", "switch to the " + other() + " theme");
    draw();
  }

  function pick(slider) {
    const index = slider.value;
    slider.closest("label").querySelector("output").textContent = slider.dataset.names.split("|")[index];
    for (const panel of document.querySelectorAll(`[data-panel="${slider.dataset.picker}"]`)) {
      panel.classList.toggle("away", panel.dataset.index !== index);
    }
    draw();
  }

  button.hidden = false;
  button.addEventListener("click", () => { chosen = other(); show(); });
  dark.addEventListener("change", show);
  for (const slider of document.querySelectorAll("[data-picker]")) {
    slider.addEventListener("input", () => pick(slider));
  }
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => draw(), 120); });

  // paper is white and narrow, and folded parts cannot be opened on it
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((part) => { part.open = true; });
    root.dataset.theme = "light";
    draw(640);
  });
  addEventListener("afterprint", () => { folded.forEach((part) => { part.open = false; }); show(); });
  show();
})();
