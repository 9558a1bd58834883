//! The `config.json` of each family, as transformers 5.17 writes it: what is read, what comes out again, and what is
//! refused.

use super::*;
use crate::config::model::LayerTypes;
use crate::config::{Activation, Experts, LayerType, NormKind, RouterWeights};

const MISTRAL: &str = r#"{
  "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
  "dtype": "bfloat16", "head_dim": 8, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
  "intermediate_size": 172,
  "max_position_embeddings": 512, "model_type": "mistral", "num_attention_heads": 8, "num_hidden_layers": 3,
  "num_key_value_heads": 4, "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "sliding_window": 96,
  "tie_word_embeddings": false, "transformers_version": "5.17.0", "use_cache": true, "vocab_size": 512
}"#;

const QWEN2: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": null, "dtype": "bfloat16",
  "eos_token_id": null, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 172,
  "layer_types": ["full_attention", "full_attention", "sliding_attention"], "max_position_embeddings": 512,
  "max_window_layers": 2, "model_type": "qwen2", "num_attention_heads": 8, "num_hidden_layers": 3,
  "num_key_value_heads": 4, "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "sliding_window": 96,
  "tie_word_embeddings": false, "transformers_version": "5.17.0", "use_cache": true, "use_sliding_window": true,
  "vocab_size": 512
}"#;

const QWEN3: &str = r#"{
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": null,
  "dtype": "bfloat16", "eos_token_id": null, "head_dim": 16, "hidden_act": "silu", "hidden_size": 64,
  "initializer_range": 0.02, "intermediate_size": 172,
  "layer_types": ["full_attention", "full_attention", "full_attention"], "max_position_embeddings": 512,
  "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 5, "num_hidden_layers": 3,
  "num_key_value_heads": 5, "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "sliding_window": null,
  "tie_word_embeddings": false, "transformers_version": "5.17.0", "use_cache": true, "use_sliding_window": false,
  "vocab_size": 512
}"#;

const GEMMA2: &str = r#"{
  "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attn_logit_softcapping": 50.0, "bos_token_id": 2, "dtype": "bfloat16", "eos_token_id": 1,
  "final_logit_softcapping": 30.0, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 64,
  "initializer_range": 0.02, "intermediate_size": 172,
  "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "max_position_embeddings": 512,
  "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 3, "num_key_value_heads": 4,
  "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "sliding_window": 4096,
  "tie_word_embeddings": true, "transformers_version": "5.17.0", "use_bidirectional_attention": null,
  "use_cache": true, "vocab_size": 512
}"#;

const MIXTRAL: &str = r#"{
  "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "bfloat16",
  "eos_token_id": 2, "head_dim": null, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02,
  "intermediate_size": 172, "max_position_embeddings": 512, "model_type": "mixtral", "num_attention_heads": 8,
  "num_experts_per_tok": 2, "num_hidden_layers": 3, "num_key_value_heads": 4, "num_local_experts": 6,
  "output_router_logits": false, "pad_token_id": null, "rms_norm_eps": 1e-05,
  "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "router_aux_loss_coef": 0.02,
  "router_jitter_noise": 0.0, "sliding_window": null, "tie_word_embeddings": false, "transformers_version": "5.17.0",
  "use_cache": true, "vocab_size": 512
}"#;

const QWEN3_MOE: &str = r#"{
  "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": null,
  "decoder_sparse_step": 2, "dtype": "bfloat16", "eos_token_id": null, "head_dim": 16, "hidden_act": "silu",
  "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 172, "max_position_embeddings": 512,
  "mlp_only_layers": [3], "model_type": "qwen3_moe", "moe_intermediate_size": 24, "norm_topk_prob": true,
  "num_attention_heads": 8, "num_experts_per_tok": 3, "num_hidden_layers": 6, "num_key_value_heads": 4,
  "num_local_experts": 8, "output_router_logits": false, "pad_token_id": null, "rms_norm_eps": 1e-06,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "router_aux_loss_coef": 0.001,
  "sliding_window": null, "tie_word_embeddings": false, "transformers_version": "5.17.0", "use_cache": true,
  "use_sliding_window": false, "vocab_size": 512
}"#;

const GPT_OSS: &str = r#"{
  "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0, "bos_token_id": null,
  "dtype": "bfloat16", "eos_token_id": null, "head_dim": 16, "hidden_act": "silu", "hidden_size": 64,
  "initializer_range": 0.02, "intermediate_size": 96,
  "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "max_position_embeddings": 512,
  "model_type": "gpt_oss", "num_attention_heads": 8, "num_experts_per_tok": 2, "num_hidden_layers": 3,
  "num_key_value_heads": 4, "num_local_experts": 6, "output_router_logits": false, "pad_token_id": null,
  "rms_norm_eps": 1e-05,
  "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "rope_theta": 150000.0, "rope_type": "yarn", "truncate": false},
  "router_aux_loss_coef": 0.001, "sliding_window": 96, "tie_word_embeddings": false,
  "transformers_version": "5.17.0", "use_cache": true, "vocab_size": 512
}"#;

/// In the spelling of transformers 4, as the models of 2025 were published: quantized, and without a type.
const GPT_OSS_PUBLISHED: &str = r#"{
  "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0, "eos_token_id": 200002,
  "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
  "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"],
  "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
  "num_hidden_layers": 2, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": false,
  "pad_token_id": 199999,
  "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"], "quant_method": "mxfp4"},
  "rms_norm_eps": 1e-05,
  "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "rope_type": "yarn", "truncate": false},
  "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
  "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201088
}"#;

const GPT2: &str = r#"{
  "activation_function": "gelu_new", "add_cross_attention": false, "architectures": ["GPT2LMHeadModel"],
  "attn_pdrop": 0.1, "bos_token_id": 50256, "dtype": "bfloat16", "embd_pdrop": 0.1, "eos_token_id": 50256,
  "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_embd": 64, "n_head": 8,
  "n_inner": null, "n_layer": 3, "n_positions": 512, "pad_token_id": null, "reorder_and_upcast_attn": false,
  "resid_pdrop": 0.1, "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true,
  "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
  "summary_type": "cls_index", "summary_use_proj": true, "tie_word_embeddings": true,
  "transformers_version": "5.17.0", "use_cache": true, "vocab_size": 512
}"#;

const ALL: [&str; 10] = [FOUR, FIVE, MISTRAL, QWEN2, QWEN3, GEMMA2, GPT2, MIXTRAL, QWEN3_MOE, GPT_OSS];

fn fields(json: &str) -> Map<String, Value> {
    serde_json::from_str(json).unwrap()
}

/// The fields come out as they went in, those that the engine does not use too.
#[test]
fn an_export_without_a_change_has_the_fields_of_the_source() {
    for json in ALL {
        let (model, source) = (Model { hf: None, ..read(json).unwrap() }, fields(json));
        // Through the text that a checkpoint keeps.
        let model = Model::from_toml("manifest".into(), &model.to_toml()).unwrap();
        let dtype = match source.get("dtype").or(source.get("torch_dtype")).and_then(Value::as_str) {
            Some("float32") => Precision::F32,
            _ => Precision::Bf16,
        };
        let mut expected = source.clone();
        if source.contains_key("torch_dtype") {
            expected.insert("torch_dtype".into(), json!("bfloat16"));
        }
        assert_eq!(config_json(&model, Some(source), dtype), Value::Object(expected));
    }
}

/// A file that names no type of its weights is of f32, and still names none.
#[test]
fn a_file_without_a_type_keeps_none() {
    let mut source = fields(GPT2);
    source.shift_remove("dtype");
    let model = read(GPT2).unwrap();
    assert_eq!(config_json(&model, Some(source.clone()), Precision::F32), Value::Object(source.clone()));
    let out = config_json(&model, Some(source), Precision::Bf16);
    assert_eq!([&out["dtype"], &out["torch_dtype"]], ["bfloat16"; 2]);
}

/// An export holds numbers of a plain type, and its `config.json` says so.
#[test]
fn a_quantized_gpt_oss_is_read_and_written_plain() {
    let model = Model { hf: None, ..read(GPT_OSS_PUBLISHED).unwrap() };
    let experts = model.layer(1).experts().unwrap();
    assert_eq!((experts.count, experts.per_token, model.router_aux_loss_coef), (32, 4, 0.0));
    assert_eq!((model.rope_theta, model.sliding_window, model.attention_bias), (Some(150_000.0), Some(128), true));
    let RopeScaling::Yarn(yarn) = &model.rope_scaling else { panic!("{:?}", model.rope_scaling) };
    assert_eq!((yarn.factor, yarn.original_max_position_embeddings, yarn.truncate), (32.0, 4096, false));
    let mut expected = fields(GPT_OSS_PUBLISHED);
    expected.shift_remove("quantization_config");
    assert_eq!(config_json(&model, Some(fields(GPT_OSS_PUBLISHED)), Precision::F32), json!(expected));
    expected.extend(["torch_dtype", "dtype"].map(|key| (key.to_string(), json!("bfloat16"))));
    assert_eq!(config_json(&model, Some(fields(GPT_OSS_PUBLISHED)), Precision::Bf16), json!(expected));
    assert!(is_quantized(&fields(GPT_OSS_PUBLISHED)) && !is_quantized(&expected) && !is_quantized(&fields(GPT_OSS)));
}

#[test]
fn other_quantizations_are_refused() {
    let method = |value: Value| json!({ "quantization_config": value });
    let cases = [
        (MIXTRAL, method(json!({ "quant_method": "mxfp4" })), "quantized weights are not supported"),
        (
            GPT_OSS,
            method(json!({ "quant_method": "gptq" })),
            "quantization_config.quant_method = \"gptq\": of a gpt_oss only \"mxfp4\" is read; use the original",
        ),
        (GPT_OSS, method(json!({ "bits": 4 })), "quantization_config.quant_method = null: of a gpt_oss only"),
        (GPT_OSS, method(json!(5)), "quantization_config.quant_method = null: of a gpt_oss only"),
    ];
    for (json, fields, want) in cases {
        let message = read(&with(json, fields)).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    read(&with(GPT_OSS, method(Value::Null))).unwrap();
}

/// Without a source, what is written describes the same model.
#[test]
fn every_family_is_read_back_from_what_is_written() {
    for json in ALL {
        let model = Model { hf: None, ..read(json).unwrap() };
        let written = config_json(&model, None, Precision::F32);
        assert_eq!(Model { hf: None, ..read(&written.to_string()).unwrap() }, model, "{written}");
    }
}

#[test]
fn a_change_is_written_over_the_source() {
    let model = Model { hf: None, vocab_size: 600, rope_theta: Some(7e5), ..read(QWEN3).unwrap() };
    let written = config_json(&model, Some(fields(QWEN3)), Precision::Bf16);
    assert_eq!((&written["vocab_size"], &written["max_window_layers"]), (&json!(600), &json!(28)));
    assert_eq!(written["rope_parameters"], json!({ "rope_type": "default", "rope_theta": 7e5 }));
    assert_eq!(Model { hf: None, ..read(&written.to_string()).unwrap() }, model);
}

#[test]
fn windows_of_qwen_follow_layer_types() {
    let kinds = |json: &str| read(json).unwrap().layers().map(|layer| layer.attention).collect::<Vec<_>>();
    let (full, window) = (AttentionKind::Full, AttentionKind::Window(96));
    assert_eq!(kinds(QWEN2), [full, full, window]);
    let mut old = fields(QWEN2);
    old.remove("layer_types");
    assert_eq!(kinds(&Value::Object(old.clone()).to_string()), [full, full, window]);
    old.insert("max_window_layers".into(), json!(1));
    assert_eq!(kinds(&Value::Object(old.clone()).to_string()), [full, window, window]);
    old.insert("use_sliding_window".into(), json!(false));
    assert_eq!(kinds(&Value::Object(old).to_string()), [full; 3]);
    assert_eq!(kinds(QWEN3), [full; 3]);
    let listed = json!({ "layer_types": ["sliding_attention", "full_attention", "full_attention"] });
    assert_eq!(kinds(&with(QWEN2, listed)), [window, full, full]);
}

#[test]
fn each_family_has_its_own_layers() {
    let [qwen2, qwen3, gemma2, gpt2] = [QWEN2, QWEN3, GEMMA2, GPT2].map(|json| read(json).unwrap());
    assert!(qwen2.layer(0).biases.qkv && !qwen2.layer(0).biases.out && !qwen2.layer(0).head_norms);
    assert!(!qwen3.layer(0).biases.qkv && qwen3.layer(0).head_norms);
    assert_eq!((qwen3.hidden_size, qwen3.num_attention_heads * qwen3.head_dim), (64, 80));
    assert_eq!(gemma2.norm_kind(), NormKind::RmsPlusOne);
    assert_eq!(gemma2.activation(), Activation::GeGlu);
    assert!(gemma2.layer(1).post_norms && gemma2.tie_word_embeddings);
    let kinds: Vec<_> = gemma2.layers().map(|layer| layer.attention).collect();
    assert_eq!(kinds, [AttentionKind::Window(4096), AttentionKind::Full, AttentionKind::Window(4096)]);
    assert_eq!((gemma2.score_scale(), gemma2.embedding_factor(|x| x)), (1.0 / 16.0, Some(8.0)));
    assert_eq!((gemma2.attn_logit_softcapping, gemma2.final_logit_softcapping), (Some(50.0), Some(30.0)));
    let uncapped = json!({ "attn_logit_softcapping": null });
    assert_eq!(read(&with(GEMMA2, uncapped)).unwrap().attn_logit_softcapping, None);
    assert_eq!((gpt2.learned_positions(), gpt2.intermediate_size, gpt2.norm_eps()), (Some(512), 256, 1e-5));
    assert_eq!((gpt2.activation(), gpt2.layer(0).biases.mlp), (Activation::Gelu, true));
    let types = read(GEMMA2).unwrap().layer_types.0;
    assert_eq!(types[..2], [LayerType::Sliding, LayerType::Full]);
}

#[test]
fn experts_are_in_the_layers_that_the_file_names() {
    let [mixtral, qwen] = [MIXTRAL, QWEN3_MOE].map(|json| read(json).unwrap());
    assert_eq!(mixtral.expert_layers().collect::<Vec<_>>(), [0, 1, 2]);
    // Every second layer but number 3.
    assert_eq!(qwen.expert_layers().collect::<Vec<_>>(), [1, 5]);
    let of = |model: &Model, layer| model.layer(layer).experts().unwrap();
    let Experts { count, per_token, weights, mlp, .. } = of(&qwen, 1);
    assert_eq!((count, per_token, weights, mlp.intermediate_size), (8, 3, RouterWeights::OfChosen, 24));
    assert_eq!((qwen.layer(0).mlp().intermediate_size, mixtral.layer(0).mlp().intermediate_size), (172, 172));
    let raw = read(&with(QWEN3_MOE, json!({ "norm_topk_prob": null }))).unwrap();
    assert_eq!(of(&raw, 1).weights, RouterWeights::OfAll);
    let defaults = json!({ "num_local_experts": null, "num_experts_per_tok": null, "moe_intermediate_size": null });
    let defaults = read(&with(QWEN3_MOE, defaults)).unwrap();
    assert_eq!((of(&defaults, 1).count, of(&defaults, 1).per_token), (128, 8));
    assert_eq!(defaults.moe_intermediate_size, 768);
}

/// The published configurations of GPT-OSS name the one clamp that there is; it may be an integer.
#[test]
fn one_clamp_of_experts_is_read() {
    let text = |limit: serde_json::Value| {
        let sizes = json!({ "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 99 });
        let rest = json!({ "model_type": "gpt_oss", "num_attention_heads": 8, "swiglu_limit": limit });
        with(&sizes.to_string(), rest)
    };
    for limit in [json!(7.0), json!(7), json!(null)] {
        assert_eq!(read(&text(limit)).unwrap().swiglu_limit, 7.0);
    }
    let message = read(&text(json!(10.0))).unwrap_err().to_string();
    assert!(message.contains("swiglu_limit = 10") && message.contains("must be 7.0"), "{message}");
}

/// transformers 4 and 5 name the number of Qwen's experts differently; both names may be there if they agree.
#[test]
fn both_names_of_the_number_of_experts_are_read() {
    let four = with(QWEN3_MOE, json!({ "num_local_experts": null, "num_experts": 8 }));
    // Each is read from a directory of its own.
    let model = |json: &str| Model { hf: None, ..read(json).unwrap() };
    assert_eq!(model(&four), model(QWEN3_MOE));
    assert_eq!(model(&with(QWEN3_MOE, json!({ "num_experts": 8 }))), model(QWEN3_MOE));
    let message = read(&with(QWEN3_MOE, json!({ "num_experts": 4 }))).unwrap_err().to_string();
    assert!(message.contains("num_experts = 4: differs from num_local_experts"), "{message}");
    let written = config_json(&read(QWEN3_MOE).unwrap(), None, Precision::F32);
    assert_eq!([&written["num_local_experts"], &written["num_experts"]], [8; 2]);
}

/// transformers adds the loss that balances experts only where it also returns their logits.
#[test]
fn the_balancing_coefficient_is_read_where_transformers_uses_it() {
    for json in [MIXTRAL, QWEN3_MOE] {
        assert_eq!(read(json).unwrap().router_aux_loss_coef, 0.0);
        let on = with(json, json!({ "output_router_logits": true, "router_aux_loss_coef": 0.5 }));
        assert_eq!(read(&on).unwrap().router_aux_loss_coef, 0.5);
    }
}

#[test]
fn biases_of_llama_and_qwen3_follow_attention_bias() {
    for json in [FIVE, QWEN3] {
        let layer = read(&with(json, json!({ "attention_bias": true }))).unwrap().layer(0);
        assert!(layer.biases.qkv && layer.biases.out && !layer.biases.mlp);
    }
    assert!(read(&with(FIVE, json!({ "mlp_bias": true }))).unwrap().layer(0).biases.mlp);
}

#[test]
fn rotary_tables_by_kind_of_layer_are_read_if_they_agree() {
    let one = json!({ "rope_type": "default", "rope_theta": 5e4 });
    let both = json!({ "rope_parameters": { "full_attention": one, "sliding_attention": one } });
    assert_eq!(read(&with(GEMMA2, both)).unwrap().rope_theta, Some(5e4));
}

/// Only Gemma's factor is rounded to the activations' type.
#[test]
fn the_factor_of_the_key_is_not_rounded() {
    let scaled = read(&with(FIVE, json!({ "embedding_scale": 110.85125 }))).unwrap();
    let gemma2 = read(&with(GEMMA2, json!({ "hidden_size": 72, "head_dim": 8 }))).unwrap();
    let factors = [&scaled, &gemma2].map(|model| model.embedding_factor(|_| 111.0));
    assert_eq!(factors, [Some(110.85125), Some(111.0)]);
}

/// Scores are scaled by the power of head_dim where nothing is said, and an export says it.
#[test]
fn a_gemma_without_a_scale_of_scores_has_that_of_its_heads() {
    let text = Model { query_pre_attn_scalar: None, ..read(GEMMA2).unwrap() }.to_toml();
    let model = Model::from_toml("model".into(), &text).unwrap();
    assert_eq!((model.head_dim, model.score_scale()), (16, 0.25));
    assert_eq!(config_json(&model, None, Precision::Bf16)["query_pre_attn_scalar"], json!(16));
}

/// GPT-2's heads are rotated by nothing, so that their size may be odd; it is no key.
#[test]
fn the_heads_of_a_gpt2_have_any_size_that_divides() {
    assert_eq!(read(&with(GPT2, json!({ "n_embd": 36, "n_head": 4 }))).unwrap().head_dim, 9);
    let text = format!("{}head_dim = 5\n", read(&with(GPT2, json!({ "n_head": 8 }))).unwrap().to_toml());
    let message = Model::from_toml("model".into(), &text).unwrap_err().to_string();
    assert!(message.contains("a gpt2 has no head_dim"), "{message}");
}

/// The stage takes the norms and the activation of the first layer for all.
#[test]
fn the_layers_of_a_family_have_one_kind_of_norm_and_activation() {
    for json in ALL {
        let model = read(json).unwrap();
        let kinds = (model.norm_kind(), model.activation());
        assert!(model.layers().all(|layer| (layer.norm, layer.mlp().activation) == kinds), "{json}");
    }
}

/// Published files say in several ways that no layer has a window.
#[test]
fn a_model_without_windows_fits_a_file_whose_windows_are_not_used() {
    let unused = json!({
        "use_sliding_window": false, "sliding_window": 131_072, "max_window_layers": 36,
        "layer_types": ["full_attention", "full_attention", "full_attention"],
    });
    for family in [QWEN2, QWEN3] {
        let dir = checkpoint(with(family, unused.clone()).as_bytes());
        let plain = Model { sliding_window: None, max_window_layers: 28, hf: None, ..read_model(dir.path()).unwrap() };
        must_fit(&plain, dir.path()).unwrap();
        // An export keeps the fields as they were.
        let source = read_source(dir.path()).unwrap();
        assert_eq!(config_json(&plain, Some(source.clone()), Precision::Bf16), Value::Object(source));
        let slides = Model { sliding_window: Some(96), use_sliding_window: true, max_window_layers: 1, ..plain };
        let slides =
            Model { layer_types: LayerTypes([&[LayerType::Full; 1][..], &[LayerType::Sliding; 2]].concat()), ..slides };
        let message = must_fit(&slides, dir.path()).unwrap_err().to_string();
        assert!(message.contains("model.use_sliding_window = true: "), "{message}");
    }
}

#[test]
fn what_a_family_does_not_have_here_is_refused() {
    let other = json!({ "rope_type": "default", "rope_theta": 1e4 });
    let one = json!({ "rope_type": "default", "rope_theta": 5e4 });
    let cases = [
        (QWEN2, json!({ "attention_bias": true }), "attention_bias = true: this family has no such key"),
        (
            QWEN2,
            json!({ "layer_types": ["full_attention"] }),
            "layer_types = [\"full_attention\"]: must list num_hidden_layers = 3",
        ),
        (
            QWEN2,
            json!({ "layer_types": ["full", "full", "full"] }),
            "layer_types[0] = \"full\": must be one of full_attention",
        ),
        (QWEN2, json!({ "use_sliding_window": false }), "has sliding_attention without a window"),
        (QWEN2, json!({ "sliding_window": 0 }), "sliding_window = 0: must lie in 1 ..= "),
        (MISTRAL, json!({ "mlp_bias": true }), "mlp_bias = true"),
        (MISTRAL, json!({ "layer_types": ["full_attention"] }), "loads a Mistral with this key as a Ministral"),
        (QWEN3, json!({ "is_causal": false }), "is_causal = false: attention to later positions"),
        (GEMMA2, json!({ "sliding_window": null }), "sliding_window is missing: write sliding_window = 4096"),
        (GEMMA2, json!({ "attn_logit_softcapping": 0 }), "attn_logit_softcapping = 0: must lie between 1e-3 and 1e6"),
        (GEMMA2, json!({ "final_logit_softcapping": -1.0 }), "final_logit_softcapping = -1.0: must lie"),
        (GEMMA2, json!({ "query_pre_attn_scalar": 0 }), "query_pre_attn_scalar = 0: must lie in 1 ..= "),
        (GEMMA2, json!({ "hidden_activation": "gelu" }), "hidden_activation = \"gelu\""),
        (GEMMA2, json!({ "use_bidirectional_attention": true }), "use_bidirectional_attention = true"),
        (FIVE, json!({ "final_logit_softcapping": 30.0 }), "final_logit_softcapping = 30.0: a llama here has no such"),
        (FIVE, json!({ "num_experts": 8 }), "num_experts = 8: a llama here has no such feature"),
        (MIXTRAL, json!({ "num_experts": 8 }), "num_experts = 8: a mixtral here has no such feature"),
        (MIXTRAL, json!({ "num_local_experts": 0 }), "num_local_experts = 0: must lie in 1 ..= "),
        (QWEN3_MOE, json!({ "num_experts_per_tok": 9 }), "num_experts_per_tok = 9: must be at most"),
        (QWEN3_MOE, json!({ "n_shared_experts": 1 }), "n_shared_experts = 1: a qwen3_moe here has no such"),
        (QWEN3, json!({ "no_rope_layers": [1, 0] }), "no_rope_layers = [1,0]: a qwen3 here"),
        (GPT2, json!({ "scale_attn_weights": false }), "scale_attn_weights = false"),
        (GPT2, json!({ "activation_function": "relu" }), "activation_function = \"relu\""),
        (GPT2, json!({ "n_head": 7 }), "n_head = 7: must divide hidden_size (64)"),
        (
            GEMMA2,
            json!({ "rope_parameters": { "full_attention": one, "sliding_attention": other } }),
            "rope_parameters.sliding_attention = ",
        ),
    ];
    for (family, fields, want) in cases {
        let got = read(&with(family, fields.clone())).expect_err(&fields.to_string());
        let message = got.to_string();
        assert!(got.exit_code() == 2 && message.contains(want), "{fields} said\n{message}\nwithout\n{want}");
        assert!(message.contains("config.json: "), "{message}");
    }
}

#[test]
fn dropout_is_a_note() {
    let dir = checkpoint(GPT2.as_bytes());
    let note = super::super::note(dir.path()).unwrap();
    assert!(
        note.ends_with("config.json: resid_pdrop = 0.1, embd_pdrop = 0.1, attn_pdrop = 0.1: dropout is not applied"),
        "{note}"
    );
    assert_eq!(super::super::note(checkpoint(FIVE.as_bytes()).path()), None);
}
