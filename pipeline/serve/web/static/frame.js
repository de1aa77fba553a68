// What Gradio's page leaves open: the language of the document.

document.documentElement.lang = "ko";
