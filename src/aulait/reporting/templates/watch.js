"use strict";
// Asks whether the run has gone on, and puts the new page in place of the old one.
(() => {
  const every = 1500;
  let known = document.documentElement.dataset.version;

  async function renew() {
    const text = await (await fetch("page")).text();
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const unfolded = new Set([...document.querySelectorAll("details[open] > summary")].map((head) => head.textContent));
    const typed = [...document.querySelectorAll(".explorer form :is(input, select)")].map((field) => field.value);
    for (const part of ["main", ".subtitle", "title"]) {
      document.querySelector(part).replaceChildren(...fresh.querySelector(part).childNodes);
    }
    for (const head of document.querySelectorAll("details > summary")) {
      if (unfolded.has(head.textContent)) head.parentElement.open = true;
    }
    document.querySelectorAll(".explorer form :is(input, select)").forEach((field, index) => {
      if (typed[index]) field.value = typed[index];
    });
    document.documentElement.dispatchEvent(new Event("aulait:renewed"));
  }

  async function look() {
    try {
      const told = await (await fetch("version")).json();
      if (told.version !== known) {
        await renew();
        known = told.version;
      }
      if (told.over) {
        await fetch("seen");
        return;
      }
      setTimeout(look, every);
    } catch {
      document.getElementById("live").textContent = "Nobody watches the run any more: this page stays as it was at " + new Date().toLocaleTimeString() + ".";
    }
  }
  setTimeout(look, every);
})();
