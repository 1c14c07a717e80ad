"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const themes = ["light", "dark"];
  let chosen = themes.find((name) => location.hash === "#" + name) || null;

  const present = () => chosen || (dark.matches ? "dark" : "light");
  const other = () => themes[1 - themes.indexOf(present())];

  function show() {
    root.dataset.theme = present();
    button.textContent = other();
    button.setAttribute("aria-label", other() + ": switch to the " + other() + " theme");
  }

  // One of several panels is shown, by a slider.
  function pick(slider) {
    const index = slider.value;
    slider.closest("label").querySelector("output").textContent = slider.dataset.names.split("|")[index];
    for (const panel of document.querySelectorAll(`[data-panel="${slider.dataset.picker}"]`)) {
      panel.classList.toggle("away", panel.dataset.index !== index);
    }
  }

  // A note at the pointer, from the title that a mark of a chart has.
  const note = document.createElement("div");
  note.id = "tip";
  note.hidden = true;
  note.setAttribute("aria-hidden", "true");
  document.body.append(note);
  addEventListener("pointerover", (event) => {
    const mark = event.target.closest && event.target.closest(".field :is(.dot, .unseen, .filled)");
    const title = mark && [...mark.children].find((child) => child.tagName === "title");
    if (title && title.textContent) {
      mark.dataset.tip = title.textContent;
      title.remove(); // or the browser shows it once more
    }
    const text = mark && mark.dataset.tip;
    note.hidden = !text;
    if (!text) return;
    note.textContent = text;
    const box = mark.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left + box.width / 2 - note.offsetWidth / 2, innerWidth - note.offsetWidth - 8));
    const top = box.top - note.offsetHeight - 8;
    note.style.left = left + scrollX + "px";
    note.style.top = (top < 8 ? box.bottom + 8 : top) + scrollY + "px";
  });

  // The table of texts is searched, filtered and sorted in place.
  function explore(place) {
    const rows = [...place.querySelectorAll("tbody tr")];
    const heads = [...place.querySelectorAll("thead th")];
    const form = place.querySelector("form");
    const said = form.querySelector("output");
    const fields = [...form.elements].filter((field) => field.name);
    const cell = (row, index) => row.cells[index].dataset.sort || row.cells[index].textContent.trim();
    const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

    function filter() {
      const [search, ...choices] = fields;
      const sought = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const fits = sought.every((word) => words.get(row).includes(word))
          && choices.every((choice) => !choice.value || row.dataset[choice.name] === choice.value);
        row.hidden = !fits;
        shown += fits;
      }
      said.textContent = shown === rows.length ? `${shown} texts` : `${shown} of ${rows.length} texts`;
    }

    function sort(index) {
      const falling = heads[index].getAttribute("aria-sort") === "descending";
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[index].setAttribute("aria-sort", falling ? "ascending" : "descending");
      const key = (row) => cell(row, index);
      const numeric = rows.every((row) => key(row) === "–" || !isNaN(key(row)));
      const value = numeric ? (row) => (key(row) === "–" ? -Infinity : Number(key(row))) : key;
      rows.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (falling ? 1 : -1));
      place.querySelector("tbody").append(...rows);
    }

    heads.forEach((head, index) => {
      const press = document.createElement("button");
      press.type = "button";
      press.append(...head.childNodes);
      press.addEventListener("click", () => sort(index));
      head.append(press);
    });
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    filter();
  }

  // Also after the body was put in anew.
  function begin() {
    for (const slider of document.querySelectorAll("[data-picker]")) {
      slider.addEventListener("input", () => pick(slider));
      pick(slider);
    }
    document.querySelectorAll("[data-explorer]").forEach(explore);
  }

  root.classList.add("scripted");
  button.hidden = false;
  button.addEventListener("click", () => { chosen = other(); show(); });
  dark.addEventListener("change", show);

  // Paper is white, and folded parts cannot be opened on it.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((part) => { part.open = true; });
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => { folded.forEach((part) => { part.open = false; }); show(); });
  show();
  begin();
  root.addEventListener("aulait:renewed", begin);
})();
