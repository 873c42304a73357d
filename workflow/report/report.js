"use strict";

// Which experiment, split and model a reader wants to see.
const choices = Object.fromEntries(
  ["experiment", "split", "model"].map((name) => [name, document.getElementById(`choose-${name}`)]),
);
const openTables = [];

function chosen(name) {
  return choices[name] ? choices[name].value : "";
}

function applyChoices() {
  for (const part of document.querySelectorAll("[data-experiment]")) {
    part.hidden = chosen("experiment") !== "" && part.dataset.experiment !== chosen("experiment");
  }
  for (const row of document.querySelectorAll("tr[data-model]")) {
    row.hidden = chosen("model") !== "" && row.dataset.model !== chosen("model");
  }
  for (const stage of document.querySelectorAll("section.section")) {
    stage.querySelector(".nothing").hidden = !!stage.querySelector("[data-experiment]:not([hidden])");
  }
  openTables.forEach((draw) => draw());
}

// What is wider than the screen says so.
const parts = new ResizeObserver((changed) => {
  for (const { target } of changed) {
    target.classList.toggle("wide", target.scrollWidth > target.clientWidth + 1);
  }
});

// Tables: laid out when they are opened, searched, sorted, and long ones shown piece by piece.
const PIECE = 50;
const LONG = 40; // characters of a text that gets room for several words in a line

function shown(value, long) {
  if (value === null) return "–";
  if (typeof value === "number") return String(value).replaceAll("-", "−");
  // a minus sign before the numbers of a text such as "GENE1 -0.5"
  return long ? value.replace(/([ (\[])-(?=\d)/g, "$1−") : value;
}

// a long name may go on in the next line after these characters, a combination after its plus
function breakable(value) {
  const parts = String(value).replace(/[_/;]|\w\+(?=[A-Za-z])/g, "$&\0").split("\0");
  return parts.flatMap((part, index) => (index ? [document.createElement("wbr"), part] : [part]));
}

function compare(one, other) {
  if (one === null || other === null) return (one === null) - (other === null);
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), undefined, { numeric: true });
}

function layOut(box) {
  layOutTable(box, JSON.parse(box.querySelector("script").textContent));
}

function layOutTable(box, data) {
  const isWord = data.columns.map((_, i) => data.rows.some((row) => typeof row[i] === "string"));
  const isLong = data.columns.map((_, i) => data.rows.some((row) => String(row[i]).length > LONG));
  const search = box.querySelector("input");
  const count = box.querySelector(".count");
  const more = box.querySelector("button");
  const table = box.querySelector("table");
  parts.observe(table.parentElement);
  let sortedBy = -1;
  let direction = 1;
  let most = PIECE;

  const head = table.createTHead().insertRow();
  data.columns.forEach((name, column) => {
    const cell = document.createElement("th");
    cell.textContent = name.replaceAll("_", " ");
    cell.scope = "col";
    cell.tabIndex = 0;
    if (isWord[column]) cell.className = "word";
    const sort = () => {
      direction = sortedBy === column ? -direction : 1;
      sortedBy = column;
      most = PIECE;
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      draw();
    };
    cell.addEventListener("click", sort);
    cell.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    head.append(cell);
  });
  const body = table.createTBody();

  function kept() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = data.rows;
    for (const name of ["split", "model"]) {
      const column = data.columns.indexOf(name);
      // rows that belong to no model, such as observed ones, are for comparison with any
      if (column >= 0 && chosen(name) !== "" && rows.some((row) => row[column] === chosen(name))) {
        rows = rows.filter((row) => [chosen(name), "observed"].includes(row[column]));
      }
    }
    if (words.length) {
      rows = rows.filter((row) => {
        const text = `${row.join(" ")} ${data.constant ?? ""}`.toLowerCase();
        return words.every((word) => text.includes(word));
      });
    }
    if (sortedBy >= 0) {
      // what has no value stays last, whatever the direction
      rows = [...rows].sort((one, other) => {
        const empty = (one[sortedBy] === null) - (other[sortedBy] === null);
        return empty || direction * compare(one[sortedBy], other[sortedBy]);
      });
    }
    return rows;
  }

  function draw() {
    const rows = kept();
    body.replaceChildren(
      ...rows.slice(0, most).map((row) => {
        const line = document.createElement("tr");
        row.forEach((value, column) => {
          const cell = line.insertCell();
          const page = ["perturbation", "gene"].includes(data.columns[column]) && browsable(data.columns[column], value);
          if (page) {
            const link = document.createElement("a");
            link.href = page;
            link.append(...breakable(value));
            cell.append(link);
          } else {
            cell.append(...breakable(shown(value, isLong[column])));
          }
          if (isWord[column]) cell.className = isLong[column] ? "word long" : "word";
        });
        return line;
      }),
    );
    count.textContent = `${Math.min(most, rows.length)} of ${rows.length} rows`;
    more.hidden = rows.length <= most;
  }

  search.addEventListener("input", () => {
    most = PIECE;
    draw();
  });
  more.addEventListener("click", () => {
    most += 4 * PIECE;
    draw();
  });
  openTables.push(draw);
  draw();
}

function browsable(kind, name) {
  return typeof Browser !== "undefined" && Browser && Browser.has(kind, name) ? `#${kind}=${encodeURIComponent(name)}` : "";
}

// Heat maps: the row, column and value of the cell that a reader points at.
const valueBox = document.createElement("div");
valueBox.className = "value";
valueBox.hidden = true;
document.body.append(valueBox);

function cellAt(maps, across, down) {
  for (const { quantity, rows, columns, values, place } of maps) {
    const [left, top, width, height] = place;
    const column = Math.floor(((across - left) / width) * columns.length);
    const row = Math.floor(((down - top) / height) * rows.length);
    if (row >= 0 && row < rows.length && column >= 0 && column < columns.length) {
      return `${rows[row]}, ${columns[column]}: ${shown(values[row * columns.length + column])} (${quantity})`;
    }
  }
  return "";
}

for (const script of document.querySelectorAll("script.cells")) {
  const image = script.parentElement.querySelector("img");
  const maps = JSON.parse(script.textContent);
  const show = (event) => {
    const box = image.getBoundingClientRect();
    const text = cellAt(maps, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    valueBox.hidden = !text;
    valueBox.textContent = text;
    // on the side of the pointer where there is room
    const isRight = event.clientX > innerWidth / 2;
    valueBox.style.left = isRight ? "" : `${event.clientX + 14}px`;
    valueBox.style.right = isRight ? `${innerWidth - event.clientX + 14}px` : "";
    valueBox.style.top = `${event.clientY + 14}px`;
  };
  image.addEventListener("pointermove", show);
  image.addEventListener("pointerdown", show); // a finger that does not move
  image.addEventListener("pointerleave", () => (valueBox.hidden = true));
}

document.querySelectorAll(".drawing, .headline, .scroll").forEach((part) => parts.observe(part));
for (const box of document.querySelectorAll("details.table")) {
  box.addEventListener("toggle", () => box.open && layOut(box), { once: true });
}
for (const choice of Object.values(choices)) {
  if (choice) choice.addEventListener("change", applyChoices);
}
applyChoices();
if (Browser) {
  Browser.start();
  if (choices.experiment) choices.experiment.addEventListener("change", Browser.start);
}

// a link to a figure or table opens what folds it
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let one = target && target.closest("details"); one; one = one.parentElement.closest("details")) one.open = true;
  if (target) target.scrollIntoView();
}
window.addEventListener("hashchange", unfold);
unfold();
