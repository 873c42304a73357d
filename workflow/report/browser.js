"use strict";

// Look up a perturbation or a gene: facts, two plots and a table, from data in the page.
const Browser = (() => {
  const box = document.getElementById("browse");
  if (!box) return null;
  const TYPES = { uint16: Uint16Array, uint32: Uint32Array, int16: Int16Array };
  const COLOURS = { up: "#b2182b", down: "#2166ac", none: "#9aa3ad" };
  const NORMAL_QUANTILE = 1.96; // of a 95 % confidence interval
  const known = {};
  const byName = (name) => box.querySelector(`[data-part="${name}"]`);
  let drawn = null;

  function read(experiment) {
    if (!known[experiment]) {
      const script = [...box.querySelectorAll("script[data-of]")].find((one) => one.dataset.of === experiment);
      if (!script) return null;
      const data = JSON.parse(script.textContent);
      for (const [name, [type, text]] of Object.entries(data.arrays)) {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        data[name] = new TYPES[type](bytes.buffer);
      }
      data.at = Object.fromEntries(data.perturbations.map((one, index) => [one.name, index]));
      known[experiment] = data;
    }
    return known[experiment];
  }

  function current() {
    const first = box.querySelector("script[data-of]").dataset.of;
    return read(chosen("experiment") || first) || read(first);
  }

  // one effect, in the units of the table
  function effectAt(data, at) {
    const size = (values) => (values[at] === data.steps.missing ? null : values[at] * data.steps.effect);
    const effect = size(data.effect);
    const error = size(data.error);
    const half = error === null ? null : NORMAL_QUANTILE * error;
    return {
      gene: data.genes[data.gene[at]],
      effect,
      low: half === null ? null : effect - half,
      high: half === null ? null : effect + half,
      strength: data.pvalue[at] * data.steps.log,
      pvalue: 10 ** (-data.pvalue[at] * data.steps.log),
      fdr: 10 ** (-data.fdr[at] * data.steps.log),
      predicted: size(data.predicted),
    };
  }

  const two = (value) => (value === null ? null : Number(value.toFixed(2)));
  const short = (value) => Number(value.toPrecision(2));
  const COLUMNS = ["effect", "low", "high", "predicted", "p", "FDR"];
  const cells = (one) => [two(one.effect), two(one.low), two(one.high), two(one.predicted), short(one.pvalue), short(one.fdr)];

  function table(columns, rows) {
    const details = byName("table");
    const made = document.createElement("div");
    made.className = "lookup";
    made.innerHTML =
      '<div class="search"><input type="search" placeholder="search" aria-label="search in this table"><span class="count note"></span></div>' +
      '<div class="scroll"><table class="sortable"></table></div><button type="button" hidden>show more</button>';
    details.replaceChildren(made);
    layOutTable(made, { columns, rows });
  }

  function facts(rows, similar) {
    const list = byName("facts");
    list.replaceChildren();
    for (const [heading, text] of rows) {
      const term = document.createElement("dt");
      term.textContent = heading;
      const said = document.createElement("dd");
      said.textContent = text;
      list.append(term, said);
    }
    if (similar.length) {
      const term = document.createElement("dt");
      term.textContent = "Most similar effects";
      const said = document.createElement("dd");
      similar.forEach(([name, r], index) => {
        const link = document.createElement("a");
        link.href = `#perturbation=${encodeURIComponent(name)}`;
        link.textContent = name;
        said.append(index ? ", " : "", link, ` (r ${String(r).replace("-", "−")})`);
      });
      list.append(term, said);
    }
  }

  async function plot(data, effects, names) {
    const target = byName("plots");
    target.hidden = false;
    if (!drawn) {
      Bokeh.logger.set_level("error");
      const item = JSON.parse(byName("description").textContent);
      drawn = (await Bokeh.embed.embed_item(item, target)).roots[0].model.document;
    }
    const source = drawn.get_model_by_name("genes");
    const columns = { name: names };
    for (const name of ["effect", "low", "high", "predicted", "strength"]) {
      columns[name] = effects.map((one) => (one[name] === null ? NaN : one[name]));
    }
    columns.pvalue_text = effects.map((one) => one.pvalue.toPrecision(2));
    columns.fdr_text = effects.map((one) => one.fdr.toPrecision(2));
    columns.colour = effects.map((one) =>
      one.fdr >= data.significance ? COLOURS.none : one.effect > 0 ? COLOURS.up : COLOURS.down,
    );
    source.data = columns;
  }

  // as it is written in the data, whatever the case of letters
  function spelt(name, known) {
    return known.includes(name) ? name : (known.find((one) => one.toLowerCase() === name.toLowerCase()) ?? name);
  }

  function showPerturbation(asked) {
    const data = current();
    const name = spelt(asked, data.perturbations.map((one) => one.name));
    if (!(name in data.at)) return say(name ? `There is no perturbation ${name} in this experiment.` : "");
    const one = data.perturbations[data.at[name]];
    const effects = [];
    for (let at = one.effects[0]; at < one.effects[1]; at += 1) effects.push(effectAt(data, at));
    say(name);
    byName("perturbation").value = name;
    byName("gene").value = "";
    facts(one.facts, one.similar);
    effects.sort((first, second) => first.pvalue - second.pvalue);
    plot(data, effects, effects.map((effect) => effect.gene));
    table(["gene", ...COLUMNS], effects.map((effect) => [effect.gene, ...cells(effect)]));
  }

  function showGene(asked) {
    const data = current();
    const gene = spelt(asked, data.genes);
    const index = data.genes.indexOf(gene);
    if (index < 0) return say(gene ? `The gene ${gene} is not measured in this experiment.` : "");
    const rows = [];
    const effects = [];
    for (const one of data.perturbations) {
      for (let at = one.effects[0]; at < one.effects[1]; at += 1) {
        if (data.gene[at] !== index) continue;
        const effect = effectAt(data, at);
        effects.push({ ...effect, perturbation: one.name });
      }
    }
    effects.sort((first, second) => first.pvalue - second.pvalue);
    say(`${gene} in all perturbations`);
    byName("gene").value = gene;
    byName("perturbation").value = "";
    facts([], []);
    plot(data, effects, effects.map((effect) => effect.perturbation));
    for (const effect of effects) rows.push([effect.perturbation, ...cells(effect)]);
    table(["perturbation", ...COLUMNS], rows);
  }

  function say(text) {
    byName("title").textContent = text;
  }

  function names() {
    const data = current();
    for (const [list, given] of [["perturbations", data.perturbations.map((one) => one.name)], ["genes", data.genes]]) {
      byName(list).replaceChildren(
        ...given.map((name) => {
          const option = document.createElement("option");
          option.value = name;
          return option;
        }),
      );
    }
    byName("model").textContent = data.model;
    byName("left-out").hidden = !data.left_out;
  }

  // an address such as #perturbation=JAK2 or #gene=CD274 opens an entry
  function follow(scroll) {
    const found = /^#(perturbation|gene)=(.*)$/.exec(location.hash);
    if (!found) return;
    const name = decodeURIComponent(found[2]);
    (found[1] === "gene" ? showGene : showPerturbation)(name);
    if (scroll) box.scrollIntoView();
  }

  for (const part of ["perturbation", "gene"]) {
    byName(part).addEventListener("change", (event) => {
      location.hash = `${part}=${encodeURIComponent(event.target.value.trim())}`;
    });
  }
  window.addEventListener("hashchange", () => follow(true));
  let opened = false;
  function start() {
    names();
    const data = current();
    if (/^#(perturbation|gene)=/.test(location.hash)) follow(!opened);
    else if (data.strongest) showPerturbation(data.strongest);
    opened = true;
  }
  return {
    start,
    has: (kind, name) => (kind === "gene" ? current().genes.includes(name) : name in current().at),
  };
})();
