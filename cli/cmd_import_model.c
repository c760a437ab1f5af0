/* `l2cdb import-model`: published checkpoints into one bundle. */
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/session.h"

static struct { const char *vision, *llm, *lora, *out; } o;

static const l2c_option options[] = {
    { 0, "vision", L2C_OPTION_STRING, &o.vision, "PATH",
      "the vision tower: a folder with safetensors, or a .pt file", NULL },
    { 0, "llm", L2C_OPTION_STRING, &o.llm, "DIR", "the language model with its tokenizer", NULL },
    { 0, "lora", L2C_OPTION_STRING, &o.lora, "DIR",
      "a PEFT LoRA adapter to merge into the language model", NULL },
    { 'o', "output", L2C_OPTION_STRING, &o.out, "DIR", "the bundle to write", NULL },
    { 0 },
};

static int run(const char *const *args, size_t args_count) {
    (void)args;
    (void)args_count;
    if (o.out == NULL || (o.vision == NULL && o.llm == NULL)) {
        return l2c_options_wrong(&l2c_cmd_import_model, "%s is missing",
                                 o.out == NULL ? "-o DIR" : "--vision or --llm");
    }
    l2c_session_log();
    l2c_progress progress = { .unit = "MB" };
    l2cdb_error err;
    l2cdb_status status = l2cdb_import_model(
        &(l2cdb_import_model_options){
            .vision = o.vision,
            .llm = o.llm,
            .lora = o.lora,
            .out_dir = o.out,
            .precision = l2c_options_common.precision,
            .progress = l2c_progress_show,
            .ctx = &progress,
        },
        &err);
    l2c_progress_clear();
    if (status != L2CDB_OK) {
        return l2c_session_fail(&err);
    }
    // An LLM alone has no heads, so no vectors to search photos with.
    const char *verb = o.vision != NULL ? "ingest" : "encode";
    printf("model: %s\nuse it with: l2cdb %s --model %s %s\n", o.out, verb, o.out,
           o.vision != NULL ? "DIR" : "TEXT");
    return L2C_EXIT_DONE;
}

const l2c_command l2c_cmd_import_model = {
    .name = "import-model",
    .usage = "",
    .summary = "make a model bundle from published checkpoints",
    .help = "Either part alone makes a bundle too, which encodes what it can. --precision chooses\n"
            "how the weights are stored (f32, bf16 or int8).\n\n"
            "  l2cdb import-model --vision LLM2CLIP-Openai-L-14-336 \\\n"
            "      --llm LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned -o l14\n",
    .options = options,
    .flags = L2C_COMMAND_MODEL,
    .run = run,
};
