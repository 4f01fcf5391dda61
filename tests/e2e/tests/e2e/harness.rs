//! The harness itself: a parser that lets bad input pass proves nothing.

use disagg_e2e::metrics::Metrics;
use disagg_e2e::router::PlacementHeader;
use disagg_e2e::sse::SseParser;

fn parse(pieces: &[&[u8]]) -> Vec<String> {
    let mut parser = SseParser::default();
    let events = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parser.finish();
    events
}

#[test]
fn sse_events_are_put_together_from_any_pieces() {
    let body = "data: {\"a\":\"né\"}\n\n: still here\n\ndata: 2\n\ndata: [DONE]\n\n".as_bytes();
    let want = ["{\"a\":\"né\"}", "2"];
    assert_eq!(parse(&[body]), want);
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    assert_eq!(parse(&bytes), want);
}

#[test]
fn sse_that_clients_may_trip_over_is_refused() {
    let wrong: [(&str, &[u8]); 8] = [
        ("no [DONE]", b"data: 1\n\n"),
        ("cut in an event", b"data: 1\n\ndata: [DONE]\n"),
        ("an event after [DONE]", b"data: [DONE]\n\ndata: 1\n\n"),
        ("[DONE] twice", b"data: [DONE]\n\ndata: [DONE]\n\n"),
        ("no space", b"data:1\n\ndata: [DONE]\n\n"),
        ("two lines", b"data: 1\ndata: 2\n\ndata: [DONE]\n\n"),
        ("another field", b"event: x\ndata: 1\n\ndata: [DONE]\n\n"),
        ("not UTF-8", b"data: \xff\n\ndata: [DONE]\n\n"),
    ];
    for (what, body) in wrong {
        let refused = std::panic::catch_unwind(|| parse(&[body])).is_err();
        assert!(refused, "{what} passed");
    }
}

#[test]
fn metrics_are_summed_over_matching_labels() {
    let text = "# HELP a_total Things.\n# TYPE a counter\na_total{x=\"1\",y=\"p\"} 2\na_total{x=\"2\",y=\"p \\\"q\\\"\"} 3\n\
                # TYPE b gauge\nb 0.5\n# EOF\n";
    let metrics = Metrics::parse(text);
    assert_eq!(metrics.sum("a_total", &[]), Some(5.0));
    assert_eq!(metrics.sum("a_total", &[("x", "2")]), Some(3.0));
    assert_eq!(metrics.sum("a_total", &[("y", "p \"q\"")]), Some(3.0));
    assert_eq!(metrics.sum("a_total", &[("x", "3")]), None);
    assert_eq!(metrics.sum("b", &[]), Some(0.5));
    assert_eq!(metrics.sum("c", &[]), None);
}

#[test]
fn malformed_metrics_are_refused() {
    for text in
        ["a 1\n", "# TYPE a gauge\na{x=\"1} 1\n", "# TYPE a gauge\na one\n", "# TYPE a gauge\na 1\na 1\n"]
    {
        assert!(std::panic::catch_unwind(|| Metrics::parse(text)).is_err(), "{text:?} passed");
    }
}

#[test]
fn the_placement_header_is_read_strictly() {
    let remote = PlacementHeader::parse("remote; reason=above-threshold; prefill=prefill-0; decode=decode-0");
    assert_eq!(
        remote,
        PlacementHeader {
            remote: true,
            reason: "above-threshold".into(),
            prefill: Some("prefill-0".into()),
            decode: "decode-0".into(),
        }
    );
    assert!(!PlacementHeader::parse("local; reason=below-threshold; decode=decode-0").remote);
    for wrong in [
        "remote; reason=above-threshold; decode=decode-0",
        "local; reason=below-threshold; prefill=prefill-0; decode=decode-0",
        "local; decode=decode-0",
        "local; reason=a; reason=b; decode=decode-0",
        "elsewhere; reason=a; decode=decode-0",
        "local; reason=a; decode=decode-0; more=x",
    ] {
        assert!(std::panic::catch_unwind(|| PlacementHeader::parse(wrong)).is_err(), "{wrong:?} passed");
    }
}
