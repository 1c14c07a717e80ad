"""Pretrain the small Llama-style base model used offline: tokenizer, weights, model card.

Usage: python scripts/make_brew.py CORPUS_DIR OUT_DIR --minutes 60
CORPUS_DIR holds .txt/.jsonl files of public text. Documents are separated by blank-blank lines (txt) or rows (jsonl, field "text").
"""
import argparse, json, math, pathlib, random, time
import numpy as np, torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

def documents(root):
    for path in sorted(pathlib.Path(root).rglob("*")):
        if path.suffix == ".txt" and path.name != "SOURCE.txt":
            for doc in path.read_text(errors="ignore").split("\n\n\n"):
                if len(doc) > 200: yield doc.strip()
        elif path.suffix == ".jsonl":
            for line in path.open():
                text = json.loads(line).get("text", "")
                if len(text) > 100: yield text

def main():
    p = argparse.ArgumentParser()
    p.add_argument("corpus"); p.add_argument("out")
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--vocab", type=int, default=8192); p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--layers", type=int, default=6); p.add_argument("--heads", type=int, default=4)
    p.add_argument("--seq", type=int, default=256); p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=2e-3)
    a = p.parse_args()
    torch.manual_seed(0); random.seed(0); torch.set_num_threads(2)
    out = pathlib.Path(a.out); out.mkdir(parents=True, exist_ok=True)
    docs = list(documents(a.corpus)); random.shuffle(docs)
    print(len(docs), "documents", sum(map(len, docs)) / 1e6, "M chars", flush=True)
    tok = ByteLevelBPETokenizer()
    specials = ["<|pad|>", "<|bos|>", "<|eos|>", "<|mask|>", "<|user|>", "<|assistant|>"]
    tok.train_from_iterator((d for d in docs[:: max(1, len(docs) // 20000)]), vocab_size=a.vocab, special_tokens=specials)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok._tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>", mask_token="<|mask|>",
                                   additional_special_tokens=["<|user|>", "<|assistant|>"], model_max_length=1024)
    fast.save_pretrained(out)
    ids = []
    for i in range(0, len(docs), 512):
        for e in tok._tokenizer.encode_batch(docs[i:i + 512]): ids.append(np.array([1, *e.ids, 2], np.uint16))
    data = np.concatenate(ids); n_val = min(200_000, len(data) // 50); val, data = data[:n_val], data[n_val:]
    print(len(data) / 1e6, "M train tokens", flush=True)
    cfg = LlamaConfig(vocab_size=a.vocab, hidden_size=a.hidden, intermediate_size=int(a.hidden * 8 / 3) // 64 * 64, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.heads, max_position_embeddings=1024, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(cfg); print(sum(q.numel() for q in model.parameters()) / 1e6, "M params", flush=True)
    opt = torch.optim.AdamW([{"params": [q for q in model.parameters() if q.dim() > 1], "weight_decay": 0.1},
                             {"params": [q for q in model.parameters() if q.dim() < 2], "weight_decay": 0.0}], lr=a.lr, betas=(0.9, 0.95))
    def batch(src, g): 
        i = torch.from_numpy(g.integers(0, len(src) - a.seq, a.batch)); 
        return torch.stack([torch.from_numpy(src[j:j + a.seq].astype(np.int64)) for j in i])
    @torch.no_grad()
    def validate():
        g = np.random.default_rng(1); model.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16): l = [model(input_ids=(x := batch(val, g)), labels=x).loss.item() for _ in range(20)]
        model.train(); return float(np.mean(l))
    def save(): 
        torch.save(model.state_dict(), out / "last.pt")
    g = np.random.default_rng(0); t0 = time.time(); step = 0; log = []
    while (u := (time.time() - t0) / (60 * a.minutes)) < 1:
        lr = a.lr * min(1, (step + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * u)))
        for q in opt.param_groups: q["lr"] = lr
        x = batch(data, g)
        with torch.autocast("cpu", dtype=torch.bfloat16): loss = model(input_ids=x, labels=x).loss
        loss.backward(); torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0); opt.step(); opt.zero_grad(set_to_none=True); step += 1
        if step % 500 == 0:
            log.append((step, step * a.batch * a.seq, loss.item(), validate())); print(log[-1], f"{step*a.batch*a.seq/(time.time()-t0):.0f} tok/s u={u:.2f}", flush=True); save()
    final = validate(); model.to(torch.bfloat16).save_pretrained(out)
    (out / "training.json").write_text(json.dumps({"tokens_seen": step * a.batch * a.seq, "val_loss": final, "log": log, "args": vars(a) | {"corpus": "", "out": ""}}))
    print("final val loss", final)
main()
