// Where each part is written about.
const DOCS = "https://thataverageguy.github.io/TinyLM";
const SOURCE = "https://github.com/thataverageguy/TinyLM/blob/main";

export const page = (name) => [`Read about it: ${name}`, `${DOCS}/${name}/`];
export const notebook = (name, path) => [`Notebook: ${name}`, `${SOURCE}/experiments/${path}`];
export const source = (name, path) => [`Source: ${name}`, `${SOURCE}/packages/${path}`];
