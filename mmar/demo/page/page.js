/** The page: options of the model into the fields, then the two halves. */

import { setUpAsking } from "./asking.js";
import { setUpDrawing } from "./drawing.js";
import { element } from "./elements.js";

/** Fill the fields in; those that the model has no use for are switched off. */
function fill(options) {
  element("model").textContent = options.model;
  for (const field of document.querySelectorAll("fieldset input, fieldset select")) {
    field.disabled = !options.draws || !(field.name in options.fields);
    if (field.name === "solver") field.replaceChildren(...options.solvers.map((name) => new Option(name)));
    field.value = options.fields[field.name] ?? "";
    if (field.disabled) field.placeholder = "";
  }
  for (const name of ["caption", "start"]) element(name).disabled = !options.draws;
  if (!options.draws) element("status").textContent = "This model reads images and draws none.";
}

const options = await (await fetch("options")).json();
fill(options);
const ask = setUpAsking();
setUpDrawing(ask);
document.body.dataset.ready = "yes";
