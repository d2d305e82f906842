// Draws the charts in the page's own colours, and filters charts, faults and answers.
const specs = JSON.parse(document.getElementById("specs").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const search = document.getElementById("search");
let drawn = [];

const site = () => document.querySelector("input[name=site]:checked")?.value ?? "all";

function theme() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  const [ink, muted, line] = ["--ink", "--muted", "--line"].map(value);
  const font = getComputedStyle(document.body).fontFamily;
  return {
    background: "transparent",
    font,
    view: { stroke: "transparent" },
    text: { color: ink },
    range: { ramp: value("--ramp").split(/\s+/), heatmap: value("--ramp").split(/\s+/) },
    axis: {
      labelColor: muted, titleColor: muted, gridColor: line, domainColor: line, tickColor: line,
      labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal", labelLimit: 160,
    },
    legend: { labelColor: ink, titleColor: muted, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal" },
  };
}

async function draw() {
  drawn.forEach((result) => result.finalize());
  drawn = [];
  const options = {
    ast: true, // interpret Vega's expressions: the page forbids compiling any
    renderer: "svg",
    config: theme(),
    tooltip: { theme: dark.matches ? "dark" : "light" },
    actions: { export: true, source: false, compiled: false, editor: false },
  };
  for (const [name, spec] of Object.entries(specs)) {
    const place = document.getElementById(`chart-${name}`);
    try {
      const result = await window.vegaEmbed(place, spec, options);
      await result.view.signal("site", site()).runAsync();
      result.view.addEventListener("click", (_, item) => item?.datum && choose(item.datum));
      drawn.push(result);
    } catch (error) {
      place.className = "failed";
      place.textContent = `This chart could not be drawn: ${error.message}`;
    }
  }
  document.documentElement.dataset.drawn = String(drawn.length);
}

// A click on a mark lists its answers: its fields become the filter's exact terms.
function choose(datum) {
  const terms = ["trial", "component", "layer", "bit", "stage", "outcome"]
    .filter((field) => datum[field] !== undefined && datum[field] !== null)
    .map((field) => `${field}=${datum[field]}`);
  if (!search || terms.length === 0) return;
  search.value = datum.trial === undefined ? terms.join(" ") : terms[0];
  filter();
  document.getElementById("answers").scrollIntoView({ behavior: "smooth" });
}

function filter() {
  const chosen = site();
  const fits = (row) => chosen === "all" || row.dataset.site === chosen;
  document.querySelectorAll(".worst tbody tr").forEach((row) => { row.hidden = !fits(row); });
  if (!search) return;
  const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.querySelectorAll("#rows .answer")];
  for (const row of rows) {
    const keys = row.dataset.keys.toLowerCase().split(" ");
    const text = row.textContent.toLowerCase();
    row.hidden = !fits(row) || !terms.every((term) => (term.includes("=") ? keys.includes(term) : text.includes(term)));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${rows.length} shown`;
  document.getElementById("none").hidden = shown > 0;
}

document.getElementById("sites")?.addEventListener("change", () => {
  drawn.forEach((result) => result.view.signal("site", site()).runAsync());
  filter();
});
search?.addEventListener("input", filter);
dark.addEventListener("change", draw);
filter();
draw();
