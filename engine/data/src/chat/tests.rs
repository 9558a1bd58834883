//! Templates against `transformers` (`tests/golden/chats`), what counts, and conversations that are refused.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::super::checkout;
use super::super::tokenizer::ControlTokens;
use super::template::Prompt;
use super::*;

fn golden(name: &str) -> PathBuf {
    checkout().join("tests/golden/chats").join(name)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open_with(&golden("tokenizer.json"), ControlTokens::Chat).unwrap()
}

fn chats(source: &str, bos: &str, eos: &str) -> Chats {
    let tokens = vec![("bos_token", bos.to_string()), ("eos_token", eos.to_string())];
    let template = Template::compile(source.into(), "chat_template.jinja".into(), tokens).unwrap();
    Chats { inputs: Inputs { paths: Vec::new(), format: None, key: "messages".into() }, template }
}

/// The published template of a family, with its BOS and EOS.
fn published(name: &str) -> Chats {
    let source = std::fs::read_to_string(golden(&format!("{name}.jinja"))).unwrap();
    let (bos, eos) = match name {
        "llama3_1" => ("<|begin_of_text|>", "<|eot_id|>"),
        "qwen2_5" | "qwen3" => ("", "<|im_end|>"),
        _ => ("<s>", "</s>"),
    };
    chats(source.trim_end(), bos, eos)
}

fn turns(contents: &[&str]) -> Value {
    let role = |i: usize| ["user", "assistant"][i % 2];
    contents.iter().enumerate().map(|(i, text)| json!({"role": role(i), "content": text})).collect()
}

fn encode(chats: &Chats, messages: &Value) -> std::result::Result<Document, String> {
    chats.encode(&tokenizer(), &json!({ "messages": messages }).to_string()).map(|(document, _)| document)
}

/// The text of the tokens that count.
fn counted(chats: &Chats, messages: &Value) -> String {
    let document = encode(chats, messages).unwrap();
    let ids: Vec<u32> = document.ids.iter().zip(&document.mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect();
    tokenizer().decode_with_controls(&ids).unwrap()
}

#[test]
fn ids_and_masks_are_those_of_transformers() {
    let lines = std::fs::read_to_string(golden("golden.jsonl")).unwrap();
    let mut compared = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let name = line["template"].as_str().unwrap();
        let found = encode(&published(name), &line["messages"]);
        let messages = &line["messages"];
        if line["error"].is_string() {
            assert!(found.is_err(), "{name} refuses {messages}");
            continue;
        }
        let found = found.unwrap_or_else(|e| panic!("{name}: {e}: {messages}"));
        let ids: Vec<u32> = serde_json::from_value(line["ids"].clone()).unwrap();
        assert_eq!(found.ids, ids, "{name}: {messages}");
        let mask: String = found.mask.iter().map(u8::to_string).collect();
        assert_eq!(mask, line["mask"].as_str().unwrap(), "{name}: {messages}");
        compared += 1;
    }
    assert!(compared >= 50, "{compared}");
}

#[test]
fn what_the_assistant_says_counts_to_the_end_of_its_turn() {
    let messages = turns(&["Hello", "Hi there ", "And?", "Done"]);
    for (name, expected) in [
        ("llama2", " Hi there </s> Done </s>"),
        ("mistral", " Hi there</s> Done</s>"),
        ("llama3_1", "Hi there<|eot_id|>Done<|eot_id|>"),
        ("qwen2_5", "Hi there <|im_end|>Done<|im_end|>"),
        ("qwen3", "Hi there <|im_end|><think>\n\n</think>\n\nDone<|im_end|>"),
        ("generation", "Hi there<|im_end|>Done</s>"),
    ] {
        assert_eq!(counted(&published(name), &messages), expected, "{name}");
    }
}

/// A template that ends turns with no control token, and one that puts another after the last turn.
#[test]
fn the_end_of_a_turn_is_found() {
    let body = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}";
    let plain = chats(&format!("{body}{{% if add_generation_prompt %}}### assistant:\n{{% endif %}}"), "<s>", "</s>");
    assert_eq!(counted(&plain, &turns(&["a", "b", "c", "d"])), "b\n\nd\n\n");
    let last = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}";
    assert_eq!(counted(&chats(last, "<s>", "</s>"), &turns(&["a", "b", "c", "d"])), "b<|im_end|>d<|im_end|>");
}

/// The number of messages comes before everything, but what follows the first message is the same when it stands alone.
#[test]
fn a_turn_begins_behind_the_message_before_it() {
    let numbered = "{{ messages | length }}{% for m in messages %}{{ m.content }}</s>{% endfor %}";
    assert_eq!(counted(&chats(numbered, "<s>", "</s>"), &turns(&["a", "b"])), "b</s>");
}

#[test]
fn a_turn_whose_beginning_is_unknown_is_refused() {
    let reversed = "{% for m in messages[::-1] %}{{ m.content }}</s>{% endfor %}";
    let error = encode(&chats(reversed, "<s>", "</s>"), &turns(&["a", "b"])).err().unwrap();
    assert!(error.contains("message 2: where this turn begins is not known"), "{error}");
    assert!(error.contains("{% generation %}"), "{error}");
}

#[test]
fn a_turn_whose_end_is_unknown_is_refused() {
    let source = "{% for m in messages %}{{ m.content | length }}{{ loop.revindex if m.role == 'assistant' }}</s>\
                  {% endfor %}";
    let error = encode(&chats(source, "<s>", "</s>"), &turns(&["a", "b", "c", "d"])).err().unwrap();
    assert!(error.contains("message 2: where this turn ends is not known"), "{error}");
    assert!(error.contains("{% generation %}"), "{error}");
}

/// A call of a tool, then its answer and the assistant's.
fn call(content: Value, arguments: Value) -> Value {
    let call = json!({"type": "function", "id": "c1", "function": {"name": "f", "arguments": arguments}});
    json!([
        {"role": "user", "content": "q"}, {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "t"}, {"role": "assistant", "content": "b"}
    ])
}

/// A printed call of `f`, as Qwen's templates have it.
fn printed(arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call><|im_end|>")
}

/// What a template prints before a call depends on whether there is content, so that a mark there changes the text.
#[test]
fn a_turn_that_is_a_call_of_a_tool_ends_behind_the_call() {
    let last = "<think>\n\n</think>\n\nb<|im_end|>";
    for (arguments, text) in [
        (json!({}), "{}".to_string()),
        (json!({"n": 2}), r#"{"n": 2}"#.into()),
        (json!({"n": {}, "s": ["<|im_end|>", 1], "<|im_end|>": 3}), String::new()),
        (json!("{\"city\": \"Köln\"}"), r#"{"city": "Köln"}"#.into()),
    ] {
        let text = if text.is_empty() { r#"{"n": {}, "s": ["<|im_end|>", 1], "<|im_end|>": 3}"#.into() } else { text };
        let found = counted(&published("qwen3"), &call(json!(""), arguments));
        assert_eq!(found, printed(&text) + last);
    }
    let found = counted(&published("qwen2_5"), &call(Value::Null, json!({"a": "</s>"})));
    assert!(found.ends_with(&(printed(r#"{"a": "</s>"}"#) + "b<|im_end|>")), "{found}");
}

/// Thoughts of an earlier turn are not printed, and nothing else is in its content.
#[test]
fn a_turn_of_thoughts_alone_ends_where_it_begins() {
    let messages = turns(&["q", "... <think>\na\n</think>\n\n", "r", "b"]);
    assert_eq!(counted(&published("qwen3"), &messages), "<|im_end|><think>\n\n</think>\n\nb<|im_end|>");
}

/// Control tokens around calls, in place of `<tool_calls>`: the turn ends behind the last of them.
#[test]
fn control_tokens_inside_a_turn_do_not_end_it() {
    let source = "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\n' + m.content }}\
                  {% for c in m.tool_calls %}{{ '<|python_tag|>' }}{{ c.function.arguments | tojson }}\
                  {{ '<|eom_id|>' }}{% endfor %}{{ '<|eot_id|>\n' }}{% endfor %}\
                  {% if add_generation_prompt %}{{ '<|start_header_id|>assistant\n' }}\
                  {% else %}{{ eos_token }}{% endif %}";
    let chats = chats(source, "<s>", "</s>");
    let called = "I call.<|python_tag|>{\"a\": \"x\"}<|eom_id|><|eot_id|>";
    let messages = call(json!("I call."), json!({"a": "x"}));
    assert_eq!(counted(&chats, &messages), format!("{called}b<|eot_id|>"));
    let ends_here = json!(messages.as_array().unwrap()[..2]);
    assert_eq!(counted(&chats, &ends_here), called);
}

/// Templates whose last turn ends with another token, whose token depends on the content, and one that refuses a
/// conversation that ends with a call.
#[test]
fn the_token_that_ends_a_turn_may_depend_on_the_conversation() {
    let ended = |token: &str| {
        let source = format!(
            "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\n' + m.content }}}}{{{{ {token} }}}}\
             {{% endfor %}}{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
        );
        counted(&chats(&source, "<s>", "</s>"), &turns(&["a", "b", "c", "d"]))
    };
    let last = |others: &str| ended(&format!("'</s>' if loop.last and not add_generation_prompt else {others}"));
    assert_eq!(last("'[END]'"), "b[END]d</s>");
    assert_eq!(last("'<|eom_id|>' if m.content.startswith('b') else '[END]'"), "b<|eom_id|>d</s>");
    let qwen = std::fs::read_to_string(golden("qwen3.jinja")).unwrap();
    let refuses = "{% if messages and messages[-1].tool_calls %}{{ raise_exception('no result') }}{% endif %}";
    let found = counted(&chats(&(refuses.to_string() + qwen.trim_end()), "", ""), &call(json!(""), json!({"a": "x"})));
    assert_eq!(found, printed(r#"{"a": "x"}"#) + "<think>\n\n</think>\n\nb<|im_end|>");
}

#[test]
fn generation_blocks_render_what_they_hold() {
    let source = "{%- for m in messages -%}\n    {%- if m.role == 'assistant' %}\n        {%- generation -%}\n  \
                  {{ loop.index0 }}{{ m.content }}\n  {%- endgeneration %}\n    {%- else %}\n{{ m.content }}\n\
                  {% generation %}never{% endgeneration %}{% endif %}{% endfor %}";
    let chats = chats(source, "<s>", "</s>");
    assert_eq!(counted(&chats, &turns(&["a", "b"])), "never1b");
    let text = chats.template.render(turns(&["a", "b"]).as_array().unwrap(), Prompt::Without).unwrap();
    assert_eq!(text, "a\nnever1b");
    let error = encode(&chats, &turns(&["a", "b\u{fdd1}"])).err().unwrap();
    assert!(error.contains("U+FDD1"), "{error}");
}

/// Jinja takes any white space in a tag, and none in a comment, a string or a raw block for one.
#[test]
fn generation_tags_are_those_that_jinja_reads() {
    let around = |start: &str, end: &str| {
        let body = format!("{start}{{{{ m.content }}}}</s>{end}");
        let source = format!(
            "{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ m.content }}}}{{% else %}}\
                              {body}{{% endif %}}{{% endfor %}}"
        );
        counted(&chats(&source, "<s>", "</s>"), &turns(&["a", "b"]))
    };
    for (start, end) in [
        ("{%generation%}", "{%endgeneration%}"),
        ("{%  generation  %}", "{%  endgeneration  %}"),
        ("{%-\n generation\t-%}", "{%-\tendgeneration\n-%}"),
        ("{%+ generation %}", "{% endgeneration +%}"),
        ("{# '{% generation %}' #}{% generation %}", "{% endgeneration %}{# {% endgeneration %} #}"),
        ("{{ {'a': {'b': ''}}['a']['b'] }}{%\ngeneration\n%}", "{% endgeneration %}"),
    ] {
        assert_eq!(around(start, end), "b</s>", "{start}");
    }
    // No block: the turn is found by its message.
    for text in ["{# {% generation %} #}", "{{ '' if true else '{% generation %}\\'{% generation %}' }}"] {
        assert_eq!(around(text, ""), "b</s>", "{text}");
    }
    assert_eq!(around("{% raw %}{% generation %}{% endraw %}", ""), "{% generation %}b</s>");
}

/// Loops that run for ever, as far as anyone waits, and texts that no memory holds.
#[test]
fn a_template_that_does_not_end_is_refused() {
    let loops = "{% for i in range(100000) %}{% for j in range(100000) %}{{ messages[0].content }}{% endfor %}\
                 {% endfor %}";
    for source in [loops, "\n{{ messages[0].content * 100000000000 }}"] {
        let start = std::time::Instant::now();
        let error = encode(&chats(source, "", ""), &turns(&["a", "b"])).err().unwrap();
        assert!(error.contains("the chat template does not come to an end"), "{error}");
        assert!(error.contains("steps, far more than a conversation of this size needs (line "), "{error}");
        assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    }
}

/// A long conversation, with a loop over all messages for each of them.
#[test]
fn a_long_conversation_may_take_as_many_steps_as_it_needs() {
    let source = "{% for m in messages %}{% for other in messages %}{% if other.role == 'tool' %}never{% endif %}\
                  {% endfor %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
                  {% endif %}{% endfor %}";
    let messages = turns(&["word "; 2000]);
    assert_eq!(counted(&chats(source, "", ""), &messages), "word ".repeat(1000));
}

#[test]
fn values_are_printed_as_in_python() {
    let value = json!({"a": [1, 2.0, "あ\"\n", null, true], "b": {}, "c": []});
    let render = |source: &str| {
        let template = chats(source, "", "").template;
        template.render(&[json!({"role": "user", "content": value})], Prompt::Without).unwrap()
    };
    assert_eq!(
        render("{{ messages[0].content | tojson }}"),
        r#"{"a": [1, 2.0, "あ\"\n", null, true], "b": {}, "c": []}"#
    );
    assert_eq!(
        render("{{ messages[0].content | tojson(indent=2, ensure_ascii=true) }}"),
        "{\n  \"a\": [\n    1,\n    2.0,\n    \"\\u3042\\\"\\n\",\n    null,\n    true\n  ],\n  \"b\": {},\n  \
         \"c\": []\n}"
    );
    assert_eq!(render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}"), r#"{"a":2,"b":1}"#);
    assert_eq!(render("{{ '<&>' | tojson }} {{ none }} {{ true }}{{ 'x' if false }}"), "\"<&>\" None True");
    assert_eq!(render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"), "01");
    assert_eq!(render("{{ 'a-b'.split('-')[-1].upper() }}{{ 'abc'.removeprefix('a') }}"), "Bbc");
    assert_eq!(render("{{ strftime_now('%Y') | length }}"), "4");
}

#[test]
fn conversations_that_cannot_be_learned_are_refused() {
    let chats = published("llama3_1");
    for (messages, needles) in [
        (turns(&["only a question"]), vec!["\"messages\": has no turn of the role \"assistant\"", "--skip-bad"]),
        (json!([]), vec!["has no messages"]),
        (json!("text"), vec!["is not a list of messages"]),
        (json!(["text"]), vec!["message 1 is not an object"]),
        (json!([{"from": "human", "value": "a"}]), vec!["message 1 has no \"role\"", "ShareGPT"]),
        (json!([{"role": 7, "content": "a"}]), vec!["message 1 has the role 7"]),
        (json!([{"role": "gpt", "content": "a"}]), vec!["the role \"gpt\", which the chat template does not know"]),
        (json!([{"role": "user", "text": "a"}]), vec!["message 1 (of the role \"user\") has no \"content\""]),
    ] {
        let error = encode(&chats, &messages).err().unwrap();
        assert!(needles.iter().all(|needle| error.contains(needle)), "{error}");
    }
    let missing = chats.encode(&tokenizer(), "{\"conversations\": []}").err().unwrap();
    assert!(missing.contains("no key \"messages\"") && missing.contains("--messages-key"), "{missing}");
}

#[test]
fn a_template_that_fails_says_where() {
    let failing = |source: &str| encode(&chats(source, "", ""), &turns(&["a", "b"])).err().unwrap();
    let error = failing("\n{% if true %}{{ raise_exception('roles must alternate') }}{% endif %}");
    assert!(error.contains("the chat template refuses the conversation: roles must alternate"), "{error}");
    for source in ["a\n{{ date_string }}", "a\n{{ messages[0].thoughts }}", "a\n{{ messages[0].a.b }}"] {
        let error = failing(source);
        assert!(error.contains("uses a value that this conversation does not have"), "{error}");
        assert!(error.contains("line 2 of the template: {{ "), "{error}");
    }
    let error = failing("{{ messages | no_such_filter }}");
    assert!(error.contains("the chat template fails"), "{error}");
    let tokens = Vec::new();
    let error = Template::compile("{% if %}".into(), "a.jinja".into(), tokens).err().unwrap().to_string();
    assert!(error.contains("a.jinja: line 1 of the chat template cannot be read"), "{error}");
}

/// A list of named templates has its default taken, a file is taken before it, and where there is none it is named.
#[test]
fn the_template_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::copy(golden("tokenizer.json"), &path).unwrap();
    let config = |value: Value| {
        std::fs::write(folder.path().join("tokenizer_config.json"), value.to_string()).unwrap();
        let tokenizer = Tokenizer::open_with(&path, ControlTokens::Chat).unwrap();
        Template::beside(&tokenizer).map_err(|e| e.to_string())
    };
    let error = config(json!({})).err().unwrap();
    assert!(error.contains("tokenizer.json: has no chat template") && error.contains("chat_template.jinja"), "{error}");
    let named = |name: &str| json!([{"name": name, "template": "{{ bos_token }}x"}, {"name": "rag", "template": "y"}]);
    let error = config(json!({ "chat_template": named("tool_use") })).err().unwrap();
    assert!(error.contains("tool_use, rag but none named \"default\""), "{error}");
    let bos = json!({"content": "<|im_start|>", "special": true});
    let template = config(json!({ "chat_template": named("default"), "bos_token": bos })).unwrap();
    assert_eq!(template.render(&[], Prompt::Without).unwrap(), "<|im_start|>x");
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ eos_token }}z").unwrap();
    let template = config(json!({ "chat_template": "x", "eos_token": null })).unwrap();
    assert_eq!(template.render(&[], Prompt::Without).unwrap(), "z");
}
