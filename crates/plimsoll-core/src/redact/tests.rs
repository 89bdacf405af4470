use proptest::prelude::*;

use super::*;

fn one(text: &str) -> String {
    redact_text(text, &["hunter2hunter2"])
}

fn command(line: &[&str]) -> Vec<String> {
    let args: Vec<String> = line.iter().map(|&arg| arg.to_owned()).collect();
    redact_command(&args, &[])
}

#[test]
fn secrets_are_hidden() {
    for (text, shown) in [
        ("PASSWORD=x", "PASSWORD=***"),
        ("PGPASSWORD=a b,c;d", "PGPASSWORD=***"),
        ("--api-key=xyz", "--api-key=***"),
        ("--env=API_KEY=xyz", "--env=API_KEY=***"),
        ("postgres://me:pw@db/x", "postgres://me:***@db/x"),
        ("postgres://me:p/w@db/x and http://a:b@c", "postgres://me:***@db/x and http://a:***@c"),
        ("redis://:pw@db", "redis://:***@db"),
        ("https://api/x?token=abc&page=2", "https://api/x?token=***&page=2"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ("authorization:Basic dTpw", "authorization:Basic ***"),
        ("Authorization: abc def", "Authorization: ***"),
        ("X-Api-Key: abc", "X-Api-Key: ***"),
        ("curl -H 'X-Auth-Token: abc' http://x", "curl -H 'X-Auth-Token: ***' http://x"),
        ("curl -H \"Authorization: Bearer a.b\" http://x", "curl -H \"Authorization: Bearer ***\" http://x"),
        ("send bearer abcdefgh1 to", "send bearer *** to"),
        ("say hunter2hunter2 twice", "say *** twice"),
        ("sk-ant-0123456789abcdef", "***"),
        ("x=(ghp_0123456789abcdefghij)", "x=(***)"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_d", "***"),
        ("curl -H x API_TOKEN=abc y", "curl -H x API_TOKEN=*** y"),
        ("tool --token abc --port 80", "tool --token *** --port 80"),
        ("tool --password 'a b' x", "tool --password '***' x"),
        (r#"{"apiKey": "a b", "port": 1}"#, r#"{"apiKey": "***", "port": 1}"#),
        (r#"{\"client_secret\":\"ab\",\"n\":1}"#, r#"{\"client_secret\":\"***\",\"n\":1}"#),
        (r#"{"token":"a\"b","n":1}"#, r#"{"token":"***","n":1}"#),
        ("{\"secrets\": {\"a\": 1}}", "{\"secrets\": {\"a\": 1}}"),
    ] {
        assert_eq!(one(text), shown, "{text}");
    }
}

#[test]
fn options_of_programs_are_known() {
    for (line, shown) in [
        ("curl -uuser:passw0rd http://x", "curl -uuser:*** http://x"),
        ("curl -sSuuser:passw0rd http://x", "curl -sSuuser:*** http://x"),
        ("curl -su user:passw0rd http://x", "curl -su user:*** http://x"),
        ("curl --user=user:passw0rd http://x", "curl --user=user:*** http://x"),
        ("curl -b session=X http://x", "curl -b *** http://x"),
        ("curl --cookie session=X http://x", "curl --cookie *** http://x"),
        ("sudo -E /usr/bin/curl -uuser:pw x", "sudo -E /usr/bin/curl -uuser:*** x"),
        ("mysql -uroot -pTopSecret shop", "mysql -uroot -p*** shop"),
        ("mysqldump -pTopSecret shop", "mysqldump -p*** shop"),
        ("docker login -u me -p pw reg", "docker login -u me -p *** reg"),
        ("docker login -ppw reg", "docker login -p*** reg"),
        ("sshpass -ppw ssh x", "sshpass -p*** ssh x"),
        ("mongosh -u me -p pw", "mongosh -u me -p ***"),
        ("unzip -P pw a.zip", "unzip -P *** a.zip"),
        ("http -a me:pw x", "http -a *** x"),
        ("tool --auth X --jwt X --pin 1234", "tool --auth *** --jwt *** --pin ***"),
        ("tool --auth=X", "tool --auth=***"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(command(&words).join(" "), shown, "{line}");
    }
    for (text, shown) in [
        ("cd /x && mysql -pTopSecret shop | cat", "cd /x && mysql -p*** shop | cat"),
        ("mysql -p'Top Secret' shop", "mysql -p'***' shop"),
        ("curl -u me:pw http://x; grep -u a:b", "curl -u me:*** http://x; grep -u a:b"),
        ("docker login -p pw && docker run -p 80:80 x", "docker login -p *** && docker run -p 80:80 x"),
    ] {
        assert_eq!(command(&["sh", "-c", text])[2], shown, "{text}");
    }
}

#[test]
fn the_same_letters_of_other_programs_stay() {
    for line in [
        "server -p 8080",
        "server -p8080",
        "java -pl x",
        "grep -u a:b",
        "docker run -p 8080:80 login",
        "docker run --name mysql -p3306:3306 x",
        "mysql -p shop",
        "mysql -P3306 -hprod -uprod",
        "curl -Ous http://x:80",
        "curl -o out:x http://x",
        "curl -b jar http://x",
        "wget -U agent:1 x",
        "sort -u a:b",
        "mkdir -p a/b",
        "git push --author X",
        "xauth -b x=y",
        "tool --auth-type basic",
        "tool --cookie-jar x",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(command(&words).join(" "), line);
        assert_eq!(command(&["sh", "-c", line])[2], line);
    }
}

#[test]
fn listed_variables_are_hidden() {
    let env = [("MYVAR", "listedvalue77"), ("N", "1"), ("PIN2", "4711"), ("OTHER", "visible")];
    assert_eq!(listed_values("MYVAR, N,PIN2,NOT_THERE", env.into_iter()), ["listedvalue77", "4711"]);
    assert_eq!(listed_values("", env.into_iter()), [""; 0]);
    let args = ["app".to_owned(), "--key=listedvalue77".to_owned(), "--at=4711".to_owned()];
    assert_eq!(redact_command(&args, &["listedvalue77".into(), "4711".into()]), ["app", "--key=***", "--at=***"]);
}

#[test]
fn commands_are_redacted() {
    assert_eq!(
        command(&["curl", "--token", "abc", "--api-key=xyz", "-v"]),
        ["curl", "--token", "***", "--api-key=***", "-v"]
    );
    assert_eq!(command(&["docker", "run", "-e", "API_KEY=v", "x"]), ["docker", "run", "-e", "API_KEY=***", "x"]);
    assert_eq!(command(&["/usr/bin/curl", "-u", "me:pw", "x"]), ["/usr/bin/curl", "-u", "me:***", "x"]);
    assert_eq!(command(&["sshpass", "-p", "pw", "ssh", "-p", "22"]), ["sshpass", "-p", "***", "ssh", "-p", "***"]);
    assert_eq!(
        command(&["a", "--password", "-Secret", "--password", "--quiet"]),
        ["a", "--password", "***", "--password", "--quiet"]
    );
    // Whole, where a shorter secret is a part of a longer one.
    let args = ["say abcdefghij".to_owned()];
    assert_eq!(redact_command(&args, &["abcdef".into(), "abcdefghij".into(), "ay".into()]), ["say ***"]);
}

#[test]
fn the_harmless_stays() {
    for text in [
        "--port=80",
        "http://host:80/path@x",
        "http://[::1]:80/a@b",
        "git@github.com:a/b.git",
        "https://user@host/x",
        "a=b",
        "print(1)",
        "--tokenizer",
        "--tokenizer=x",
        "--max-tokens=4096",
        "MAX_TOKENS=4096",
        "--password-file=/run/x",
        "PWD=/tmp",
        "OLDPWD=/tmp",
        "sk-short",
        "-c",
        "if token == other: pass",
        "std::secret::of",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "basic training for all",
        "",
    ] {
        assert_eq!(one(text), text);
    }
    let env = [("API_TOKEN", "longenough"), ("HOME", "/root"), ("PASSWORD", "abc"), ("MYSQL_PWD", "secret7")];
    assert_eq!(secret_values(env.into_iter()), ["longenough", "secret7"]);
}

#[test]
fn a_login_is_no_place_for_secrets() {
    let user = |login: &str, secret: &str| {
        let line = ["curl", "-u", login].map(str::to_owned);
        redact_command(&line, &[secret.to_owned()]).swap_remove(2)
    };
    // Keys as users, the password empty: how many an API is asked.
    assert_eq!(user("hunter2hunter2:", "hunter2hunter2"), "***:***");
    assert_eq!(user("sk_test_0123456789abcdef:", ""), "***:***");
    assert_eq!(user("me:hunter2hunter2", "me:hunter2hunter2"), "***");
    assert_eq!(user("hunter2:pw", "hunter2:"), "***");
    assert_eq!(user("me:pw", "hunter2hunter2"), "me:***");
}

#[test]
fn what_is_left_of_an_option_is_a_value() {
    for (line, shown) in [
        (["x", "--token", "--listed-abc"], ["x", "--token", "***"]),
        (["curl", "-u", "--listed:pw"], ["curl", "-u", "***:***"]),
        (["x", "--token", "--other"], ["x", "--token", "--other"]),
    ] {
        assert_eq!(redact_command(&line.map(str::to_owned), &["--listed".to_owned()]), shown);
    }
}

/// Found by the fuzzer: the word that makes `-u…` an option of curl is hidden itself, and the option is another then.
#[test]
fn a_hidden_program_leaves_its_options() {
    let line = ["curl", "-u", "m/e--1unr2&", "curl", "-user-token://li", "value"];
    let secrets = [")Hunr2&".to_owned(), "curl".to_owned(), "-u".to_owned()];
    let once = redact_command(&line.map(str::to_owned), &secrets);
    assert_eq!(redact_command(&once, &secrets), once);
    assert_eq!(once, ["***", "-u", "m/e--1unr2&", "***", "-user-token:***", "***"]);
}

/// Text that is more likely than any to look like something.
fn suspicious() -> impl Strategy<Value = String> {
    let parts = [
        "--",
        "-",
        "token",
        "password",
        "Authorization",
        "bearer",
        "Basic",
        "=",
        ":",
        "://",
        "@",
        "/",
        " ",
        "\"",
        "'",
        "\\",
        "***",
        "*",
        "sk-",
        "ghp_",
        "eyJ",
        ".",
        "0123456789abcdef",
        "é",
        "ü@",
        "&",
        "{",
        "}",
        "-u",
        "-p",
        "curl",
        "mysql",
        "login",
        "a:b",
        "\n",
        "\0",
        "==",
        "=a",
    ];
    let part = prop_oneof![prop::sample::select(parts.to_vec()).prop_map(str::to_owned), "\\PC{0,3}"];
    prop_oneof![3 => prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat()), 1 => any::<String>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn never_panics_bounded_and_twice_is_once(
        program in prop::sample::select(vec!["x", "curl", "redis-cli", "mysql", "docker"]),
        args in prop::collection::vec(suspicious(), 0..6),
        secrets in prop::collection::vec(prop_oneof!["[a-z]{6,9}", "[*a=-]{6,8}", suspicious()], 0..3),
    ) {
        let mut given = vec![program.to_owned()];
        given.extend(args);
        let once = redact_command(&given, &secrets);
        prop_assert_eq!(once.len(), given.len());
        for (shown, given) in once.iter().zip(&given) {
            prop_assert!(shown.len() <= 2 * given.len() + 3, "{given:?} {shown:?}");
        }
        prop_assert_eq!(redact_command(&once, &secrets), once);
    }

    #[test]
    fn no_secret_value_is_left(secret in "[a-zA-Z0-9]{8,20}", around in "[ -~]{0,20}") {
        let shown = redact_command(&[format!("{around}{secret}{around}")], std::slice::from_ref(&secret));
        prop_assert!(!shown[0].contains(&secret));
    }

    #[test]
    fn no_value_of_a_secret_name_is_left(
        name in prop::sample::select(vec!["--token", "GH_TOKEN", "--client-secret", "db_password", "X_API_KEY"]),
        value in "[!-~]{1,30}",
    ) {
        prop_assert_eq!(&command(&[&format!("{name}={value}")])[0], &format!("{name}=***"));
        prop_assume!(!is_option(&value));
        prop_assert_eq!(&command(&["x", "--api-token", &value])[2], HIDDEN);
    }
}

/// Found by the fuzzer: a hidden option is none the second time, so that what stands behind it must not be its value.
#[test]
fn a_program_behind_a_hidden_option_is_one() {
    let args = ["--jax-tok", "curl", "-u", "me:pw"].map(str::to_owned);
    let secrets = ["--jax".to_owned()];
    let once = redact_command(&args, &secrets);
    assert_eq!(once, ["***-tok", "curl", "-u", "me:***"]);
    assert_eq!(redact_command(&once, &secrets), once);
}
