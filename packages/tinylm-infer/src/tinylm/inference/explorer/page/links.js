// Where each part is written about: a page of the documentation, a notebook, the source. A test looks that each is there.
const DOCS = "https://thataverageguy.github.io/TinyLM";
const SOURCE = "https://github.com/thataverageguy/TinyLM/blob/main";

const last = (path) => path.split("/").at(-1);
const words = (path) => last(path).replace(/^[\d_-]+|\.\w+$/g, "").replaceAll("_", " ");

export const page = (path) => [`Read: ${words(path).replaceAll("-", " ")}`, `${DOCS}/${path}/`];
export const notebook = (path) => [`Notebook: ${words(path)}`, `${SOURCE}/experiments/${path}`];
export const source = (path) => [`Source: ${last(path)}`, `${SOURCE}/packages/${path}`];
