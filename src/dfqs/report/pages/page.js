"use strict";
// Filters the answers by words, set and verdict. Without it all of them are shown.
(() => {
  const form = document.getElementById("search");
  if (!form) return;
  const items = Array.from(document.querySelectorAll("#answers > details"));
  const texts = items.map((item) => item.textContent.toLowerCase());
  const count = document.getElementById("count");
  const [words, stage, verdict] = ["words", "stage", "verdict"].map((id) => document.getElementById(id));
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    items.forEach((item, index) => {
      const fits =
        wanted.every((word) => texts[index].includes(word)) &&
        (!stage.value || item.dataset.stage === stage.value) &&
        (!verdict.value || item.dataset.verdict === verdict.value);
      item.hidden = !fits;
      shown += fits ? 1 : 0;
    });
    count.textContent = `${shown} of ${items.length} shown`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
})();
